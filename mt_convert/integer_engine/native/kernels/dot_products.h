// Sums of 4 bytes times 4 weights for 16 output channels, for P pixels at once. Weights lie in the
// order of use: for each quad of input channels 16 outputs with 4 weights each.

#pragma once

#include <algorithm>

#include "lanes.h"

namespace {

inline int32_t quad_at(const u8* from) {
    int32_t quad;
    std::memcpy(&quad, from, 4);
    return quad;
}

#if defined(__AVX512VNNI__) || defined(MT_EMULATE_VNNI)
#if defined(MT_EMULATE_VNNI)  // the four instructions used, spelled out: a test of everything else
struct Wide { int32_t lane[16]; };
inline Wide wide_load(const void* from) { Wide x; std::memcpy(&x, from, 64); return x; }
inline void wide_store(void* to, Wide x) { std::memcpy(to, &x, 64); }
inline Wide wide_all(int32_t v) { Wide x; for (int32_t& lane : x.lane) lane = v; return x; }
inline Wide wide_dot(Wide sum, Wide bytes, Wide weights) {
    u8 b[64];
    int8_t w[64];
    std::memcpy(b, &bytes, 64);
    std::memcpy(w, &weights, 64);
    for (int i = 0; i < 64; ++i) sum.lane[i / 4] += int32_t(b[i]) * w[i];
    return sum;
}
#else
using Wide = __m512i;
inline Wide wide_load(const void* from) { return _mm512_loadu_si512(from); }
inline void wide_store(void* to, Wide x) { _mm512_storeu_si512(to, x); }
inline Wide wide_all(int32_t v) { return _mm512_set1_epi32(v); }
inline Wide wide_dot(Wide sum, Wide b, Wide w) { return _mm512_dpbusd_epi32(sum, b, w); }
#endif
struct Lanes {
    static constexpr int most = 12;  // pixels at once
    using Sum = Wide;
    using Weights = Wide;
    static Sum start(const int32_t* from) { return wide_load(from); }
    static Weights weights(const int8_t* from) { return wide_load(from); }
    static void add_dot(Sum& sum, const u8* quad, const Weights& w) {
        sum = wide_dot(sum, wide_all(quad_at(quad)), w);
    }
    static void finish(const Sum& sum, int32_t* to) { wide_store(to, sum); }
};
#elif defined(__AVX2__)
struct Lanes {  // for products of which two fit int16, but few more
    static constexpr int most = 4;
    struct Sum { __m256i half[2]; };
    using Weights = Sum;
    static Sum start(const int32_t* from) { return {load(from), load(from + 8)}; }
    static Weights weights(const int8_t* from) {
        return {load((const int32_t*)from), load((const int32_t*)(from + 32))};
    }
    static void add_dot(Sum& sum, const u8* quad, const Weights& w) {
        const __m256i bytes = _mm256_set1_epi32(quad_at(quad)), ones = _mm256_set1_epi16(1);
        for (int i = 0; i < 2; ++i) {
            const __m256i pairs = _mm256_maddubs_epi16(bytes, w.half[i]);
            sum.half[i] = _mm256_add_epi32(sum.half[i], _mm256_madd_epi16(pairs, ones));
        }
    }
    static void finish(const Sum& sum, int32_t* to) {
        store(to, sum.half[0]);
        store(to + 8, sum.half[1]);
    }
};
#else
struct Lanes {  // any machine
    static constexpr int most = 2;
    struct Sum { int32_t lane[16]; };
    struct Weights { int16_t lane[64]; };
    static Sum start(const int32_t* from) { Sum sum; std::memcpy(&sum, from, 64); return sum; }
    static Weights weights(const int8_t* from) {
        Weights w;
        for (int i = 0; i < 64; ++i) w.lane[i] = from[i];
        return w;
    }
    static void add_dot(Sum& sum, const u8* quad, const Weights& w) {
        int16_t bytes[8];
        for (int i = 0; i < 8; ++i) bytes[i] = quad[i % 4];
        for (int i = 0; i < 16; ++i)
            sum.lane[i] += bytes[0] * w.lane[4 * i] + bytes[1] * w.lane[4 * i + 1] +
                           bytes[2] * w.lane[4 * i + 2] + bytes[3] * w.lane[4 * i + 3];
    }
    static void finish(const Sum& sum, int32_t* to) { std::memcpy(to, &sum, 64); }
};
#endif

template <int P>
void dots(const u8* const* pixel, const Op& op, const Block& block, const int8_t* weights,
          int32_t (*sums)[16]) {
    typename Lanes::Sum sum[P];
    const int32_t* correction = op.correction + block.channel;
    for (int p = 0; p < P; ++p) sum[p] = Lanes::start(correction);
    for (int i = 0; i < op.n_pieces; ++i) {
        const Piece piece = op.pieces[i];
        const u8* at[P];
        for (int p = 0; p < P; ++p) at[p] = pixel[p] + block.offset + piece.offset;
        for (int64_t q = 0; q < 4 * int64_t(piece.quads); q += 4, weights += 64) {
            const typename Lanes::Weights w = Lanes::weights(weights);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) Lanes::add_dot(sum[p], at[p] + q, w);
        }
    }
    for (int p = 0; p < P; ++p) Lanes::finish(sum[p], sums[p]);
}

#if defined(__AVX2__)
// The same with sums of pairs of channels in int16 as long as they fit: pieces say when they have
// to be flushed into the int32 sums.
template <int P>
void short_dots(const u8* const* pixel, const Op& op, const Block& block, const int8_t* weights,
                int32_t (*sums)[16]) {
    const __m256i ones = _mm256_set1_epi16(1);
    const int32_t* from = op.correction + block.channel;  // what the first flush adds to
    int64_t stride = 0;
    __m256i sum[P][2];
    for (int p = 0; p < P; ++p) sum[p][0] = sum[p][1] = _mm256_setzero_si256();
    for (int i = 0; i < op.n_pieces; ++i) {
        const Piece piece = op.pieces[i];
        const u8* at[P];
        for (int p = 0; p < P; ++p) at[p] = pixel[p] + block.offset + piece.offset;
        for (int64_t q = 0; q < 4 * int64_t(piece.quads); q += 4, weights += 64) {
            const __m256i first = _mm256_loadu_si256((const __m256i*)weights);
            const __m256i second = _mm256_loadu_si256((const __m256i*)(weights + 32));
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) {
                const __m256i bytes = _mm256_set1_epi32(quad_at(at[p] + q));
                sum[p][0] = _mm256_add_epi16(sum[p][0], _mm256_maddubs_epi16(bytes, first));
                sum[p][1] = _mm256_add_epi16(sum[p][1], _mm256_maddubs_epi16(bytes, second));
            }
        }
        if (!piece.flush) continue;
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
            for (int h = 0; h < 2; ++h) {
                const __m256i before = load(from + p * stride + 8 * h);
                store(sums[p] + 8 * h, _mm256_add_epi32(before, _mm256_madd_epi16(sum[p][h], ones)));
                sum[p][h] = _mm256_setzero_si256();
            }
        }
        from = sums[0];
        stride = 16;
    }
}

// For products of which two do not fit int16: bytes 0 and 2, then 1 and 3, of each quad as int16,
// and weights in int16 in the order that these want, [2, 16 outputs, 2].
template <int P>
void int16_dots(const u8* const* pixel, const Op& op, const Block& block, const int8_t* weights,
                int32_t (*sums)[16]) {
    const __m256i low = _mm256_set1_epi16(255);
    const int32_t* correction = op.correction + block.channel;
    __m256i sum[P][2];
    for (int p = 0; p < P; ++p) {
        sum[p][0] = load(correction);
        sum[p][1] = load(correction + 8);
    }
    for (int i = 0; i < op.n_pieces; ++i) {
        const Piece piece = op.pieces[i];
        const u8* at[P];
        for (int p = 0; p < P; ++p) at[p] = pixel[p] + block.offset + piece.offset;
        for (int64_t q = 0; q < 4 * int64_t(piece.quads); q += 4, weights += 128) {
            const __m256i* w = (const __m256i*)weights;
            const __m256i even[2] = {_mm256_loadu_si256(w), _mm256_loadu_si256(w + 1)};
            const __m256i odd[2] = {_mm256_loadu_si256(w + 2), _mm256_loadu_si256(w + 3)};
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) {
                const __m256i bytes = _mm256_set1_epi32(quad_at(at[p] + q));
                const __m256i first = _mm256_and_si256(bytes, low);
                const __m256i second = _mm256_srli_epi16(bytes, 8);
                for (int h = 0; h < 2; ++h) {
                    const __m256i four = _mm256_add_epi32(_mm256_madd_epi16(first, even[h]),
                                                          _mm256_madd_epi16(second, odd[h]));
                    sum[p][h] = _mm256_add_epi32(sum[p][h], four);
                }
            }
        }
    }
    for (int p = 0; p < P; ++p) {
        store(sums[p], sum[p][0]);
        store(sums[p] + 8, sum[p][1]);
    }
}
constexpr int most_short = 6, most_int16 = 3;
#else
constexpr int most_short = 0, most_int16 = 0;  // not used by lowering.py
#endif
constexpr int most_pixels = std::max(Lanes::most, most_short);

using Dots = void (*)(const u8* const*, const Op&, const Block&, const int8_t*, int32_t (*)[16]);

struct Kernel {
    Dots run;
    int pixels;
};

// The kernel that does at least so many pixels.
Kernel kernel_for(int count, [[maybe_unused]] int sums) {
#if defined(__AVX2__)
    if (sums == SHORT) {
        if (count > 4) return {short_dots<6>, 6};
        if (count > 2) return {short_dots<4>, 4};
        if (count > 1) return {short_dots<2>, 2};
        return {short_dots<1>, 1};
    }
    if (sums == INT16_WEIGHTS) {
        if (count > 2) return {int16_dots<3>, 3};
        if (count > 1) return {int16_dots<2>, 2};
        return {int16_dots<1>, 1};
    }
#endif
    if constexpr (Lanes::most >= 12)
        if (count > 8) return {dots<std::min(12, Lanes::most)>, 12};
    if constexpr (Lanes::most >= 8)
        if (count > 4) return {dots<std::min(8, Lanes::most)>, 8};
    if constexpr (Lanes::most >= 4)
        if (count > 2) return {dots<std::min(4, Lanes::most)>, 4};
    if (count > 1) return {dots<2>, 2};
    return {dots<1>, 1};
}

}  // namespace
