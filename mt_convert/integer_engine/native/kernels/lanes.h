// Arithmetic on 8 numbers at once. Rounding is half to even, |x| at most 2^22.

#pragma once

#include <cstdint>
#include <cstring>

#include "structures.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX2__)
using Floats = __m256;
using Ints = __m256i;

inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats clamp(Floats x, Floats low, Floats high) {
    return _mm256_min_ps(_mm256_max_ps(x, low), high);
}
inline Floats rounded(Floats x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats masked(Floats x, uint32_t bits) {
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(int32_t(bits))));
}
inline int differing(Floats a, Floats b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_OQ));
}
inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Ints to_ints(Floats x) { return _mm256_cvtps_epi32(x); }
inline Ints load(const int32_t* from) { return _mm256_loadu_si256((const __m256i*)from); }
inline Ints load(const int16_t* from) {
    return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)from));
}
inline Ints load(const u8* from, int low) {
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
    return _mm256_add_epi32(wide, _mm256_set1_epi32(low));
}
inline __m256i pack16(Ints a, Ints b) {
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}
inline void store16(int16_t* to, Ints a, Ints b) {
    _mm256_storeu_si256((__m256i*)to, pack16(a, b));
}
inline void store16(u8* to, Ints a, Ints b, int low) {
    const __m256i x = _mm256_sub_epi16(pack16(a, b), _mm256_set1_epi16(int16_t(low)));
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storeu_si128((__m128i*)to, bytes);
}
inline void store(int32_t* to, Ints x) { _mm256_storeu_si256((__m256i*)to, x); }
inline void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }

#else
struct Floats { float lane[8]; };
struct Ints { int32_t lane[8]; };
#define EACH for (int i = 0; i < 8; ++i)

inline Floats load(const float* from) { Floats x; EACH x.lane[i] = from[i]; return x; }
inline Floats all(float v) { Floats x; EACH x.lane[i] = v; return x; }
inline Floats add(Floats a, Floats b) { EACH a.lane[i] += b.lane[i]; return a; }
inline Floats subtract(Floats a, Floats b) { EACH a.lane[i] -= b.lane[i]; return a; }
inline Floats multiply(Floats a, Floats b) { EACH a.lane[i] *= b.lane[i]; return a; }
inline Floats clamp(Floats x, Floats low, Floats high) {
    EACH x.lane[i] = x.lane[i] < low.lane[i] ? low.lane[i] : x.lane[i];
    EACH x.lane[i] = x.lane[i] > high.lane[i] ? high.lane[i] : x.lane[i];
    return x;
}
inline Floats rounded(Floats x) {  // 1.5 * 2^23 leaves no room for a fraction
    EACH x.lane[i] = (x.lane[i] + 12582912.0f) - 12582912.0f;
    return x;
}
inline Floats masked(Floats x, uint32_t bits) {
    uint32_t raw[8];
    std::memcpy(raw, &x, sizeof raw);
    EACH raw[i] &= bits;
    std::memcpy(&x, raw, sizeof raw);
    return x;
}
inline int differing(Floats a, Floats b) {
    int found = 0;
    EACH found |= (a.lane[i] != b.lane[i]) << i;
    return found;
}
inline Floats to_floats(Ints x) { Floats y; EACH y.lane[i] = float(x.lane[i]); return y; }
inline Ints to_ints(Floats x) { Ints y; EACH y.lane[i] = int32_t(x.lane[i]); return y; }
inline Ints load(const int32_t* from) { Ints x; EACH x.lane[i] = from[i]; return x; }
inline Ints load(const int16_t* from) { Ints x; EACH x.lane[i] = from[i]; return x; }
inline Ints load(const u8* from, int low) { Ints x; EACH x.lane[i] = from[i] + low; return x; }
inline void store16(int16_t* to, Ints a, Ints b) {
    EACH to[i] = int16_t(a.lane[i]);
    EACH to[8 + i] = int16_t(b.lane[i]);
}
inline void store16(u8* to, Ints a, Ints b, int low) {
    EACH to[i] = u8(a.lane[i] - low);
    EACH to[8 + i] = u8(b.lane[i] - low);
}
inline void store(int32_t* to, Ints x) { EACH to[i] = x.lane[i]; }
inline void store(float* to, Floats x) { EACH to[i] = x.lane[i]; }
#undef EACH
#endif

}  // namespace
