// Functions as ladders: a number's level is found by thresholds, and nothing is evaluated.

#pragma once

#include "lanes.h"
#include "structures.h"

namespace {

#if defined(__AVX2__)
inline Floats where_reached(Floats y, Floats threshold, Floats weight) {
    return _mm256_and_ps(weight, _mm256_cmp_ps(y, threshold, _CMP_GE_OQ));
}

// Rows of ``width`` = 2^k entries, 2^k - 1 thresholds in each, halved k times.
inline Floats searched_level(const Thresholds& t, int channel, Floats y) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i row = _mm256_setzero_si256();
    if (t.rows > 1) {
        const __m256i rows = _mm256_add_epi32(_mm256_set1_epi32(channel), lane);
        const __m256i last = _mm256_set1_epi32(t.rows - 1);  // lanes beyond are not stored
        row = _mm256_mullo_epi32(_mm256_min_epi32(rows, last), _mm256_set1_epi32(t.width));
    }
    __m256i passed = row;
    for (int half = t.width / 2; half; half /= 2) {
        const __m256i place = _mm256_add_epi32(passed, _mm256_set1_epi32(half - 1));
        const Floats threshold = _mm256_i32gather_ps(t.thresholds, place, 4);
        const __m256i reached = _mm256_castps_si256(_mm256_cmp_ps(y, threshold, _CMP_GE_OQ));
        passed = _mm256_add_epi32(passed, _mm256_and_si256(reached, _mm256_set1_epi32(half)));
    }
    return _mm256_i32gather_ps(t.levels, passed, 4);
}
#else
inline Floats where_reached(Floats y, Floats threshold, Floats weight) {
    for (int i = 0; i < 8; ++i) y.lane[i] = y.lane[i] >= threshold.lane[i] ? weight.lane[i] : 0;
    return y;
}

inline Floats searched_level(const Thresholds& t, int channel, Floats y) {
    for (int i = 0; i < 8; ++i) {
        const int row = t.rows > 1 ? (channel + i < t.rows ? channel + i : t.rows - 1) : 0;
        int passed = row * t.width;
        for (int half = t.width / 2; half; half /= 2)
            passed += y.lane[i] >= t.thresholds[passed + half - 1] ? half : 0;
        y.lane[i] = t.levels[passed];
    }
    return y;
}
#endif

// The levels of 8 neurons: start + sum of w_i [y >= theta_i], compared one by one, or searched.
inline Floats level_of(const Thresholds& t, int channel, Floats y) {
    if (t.searched) return searched_level(t, channel, y);
    const bool own = t.rows > 1;
    Floats level = own ? load(t.start + channel) : all(*t.start);
    for (int i = 0; i < t.count; ++i) {
        const float *threshold = t.thresholds + i * t.width, *weight = t.weights + i * t.width;
        level = own ? add(level, where_reached(y, load(threshold + channel), load(weight + channel)))
                    : add(level, where_reached(y, all(*threshold), all(*weight)));
    }
    return level;
}

}  // namespace
