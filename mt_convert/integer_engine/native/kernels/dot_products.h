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
inline Wide wide_add(Wide a, Wide b) {
    for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
    return a;
}
inline void join_taps(const u8* const* tap, Wide* quads) {
    u8 bytes[4][64];
    for (int c = 0; c < 64; ++c)
        for (int t = 0; t < 4; ++t) bytes[c % 16 / 4][c / 16 * 16 + c % 4 * 4 + t] = tap[t][c];
    std::memcpy(quads, bytes, sizeof bytes);
}
inline void by_channel(Wide* sums) {
    Wide sorted[4];
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 16; ++i) sorted[j].lane[i] = sums[i / 4].lane[4 * j + i % 4];
    std::copy_n(sorted, 4, sums);
}
#else
using Wide = __m512i;
inline Wide wide_load(const void* from) { return _mm512_loadu_si512(from); }
inline void wide_store(void* to, Wide x) { _mm512_storeu_si512(to, x); }
inline Wide wide_all(int32_t v) { return _mm512_set1_epi32(v); }
inline Wide wide_dot(Wide sum, Wide b, Wide w) { return _mm512_dpbusd_epi32(sum, b, w); }
inline Wide wide_add(Wide a, Wide b) { return _mm512_add_epi32(a, b); }

// 64 channels of 4 taps, as quads: lanes 4 j ... of quads[k] are of the channels 16 j + 4 k ...
inline void join_taps(const u8* const* tap, Wide* quads) {
    const __m512i a = wide_load(tap[0]), b = wide_load(tap[1]);
    const __m512i c = wide_load(tap[2]), d = wide_load(tap[3]);
    const __m512i ab[2] = {_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)};
    const __m512i cd[2] = {_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d)};
    for (int h = 0; h < 2; ++h) {
        quads[2 * h] = _mm512_unpacklo_epi16(ab[h], cd[h]);
        quads[2 * h + 1] = _mm512_unpackhi_epi16(ab[h], cd[h]);
    }
}

// 64 sums in the order of `join_taps` in the order of their channels.
inline void by_channel(Wide* sums) {
    const __m512i a = _mm512_shuffle_i32x4(sums[0], sums[1], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(sums[0], sums[1], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(sums[2], sums[3], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(sums[2], sums[3], 0xee);
    sums[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    sums[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    sums[2] = _mm512_shuffle_i32x4(b, d, 0x88);
    sums[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}
#endif
constexpr int depthwise_blocks = 4;  // of 16 channels, at once
struct Lanes {
    static constexpr int most = 12;  // pixels at once
    using Sum = Wide;
    using Weights = Wide;
    static Sum start(const int32_t* from) { return wide_load(from); }
    static Weights weights(const int8_t* from) { return wide_load(from); }
    using Quad = Wide;
    static Quad quad(const u8* from) { return wide_all(quad_at(from)); }
    static void add_dot(Sum& sum, const Quad& quad, const Weights& w) {
        sum = wide_dot(sum, quad, w);
    }
    static void finish(const Sum& sum, int32_t* to) { wide_store(to, sum); }
};
#elif defined(__AVX2__)
constexpr int depthwise_blocks = 1;
struct Lanes {  // for products of which two fit int16, but few more
    static constexpr int most = 4;
    struct Sum { __m256i half[2]; };
    using Weights = Sum;
    static Sum start(const int32_t* from) { return {load(from), load(from + 8)}; }
    static Weights weights(const int8_t* from) {
        return {load((const int32_t*)from), load((const int32_t*)(from + 32))};
    }
    using Quad = __m256i;
    static Quad quad(const u8* from) { return _mm256_set1_epi32(quad_at(from)); }
    static void add_dot(Sum& sum, const Quad& bytes, const Weights& w) {
        const __m256i ones = _mm256_set1_epi16(1);
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
constexpr int depthwise_blocks = 1;
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
    struct Quad { int16_t bytes[4]; };
    static Quad quad(const u8* from) { return {{from[0], from[1], from[2], from[3]}}; }
    static void add_dot(Sum& sum, const Quad& quad, const Weights& w) {
        const int16_t* bytes = quad.bytes;
        for (int i = 0; i < 16; ++i)
            sum.lane[i] += bytes[0] * w.lane[4 * i] + bytes[1] * w.lane[4 * i + 1] +
                           bytes[2] * w.lane[4 * i + 2] + bytes[3] * w.lane[4 * i + 3];
    }
    static void finish(const Sum& sum, int32_t* to) { std::memcpy(to, &sum, 64); }
};
#endif

constexpr int pixels_in_turn = 24;  // whose sums wait for their neurons

// P pixels and G blocks of 16 channels, which read the same input; ``stride`` bytes lie between the
// weights of one block and the next, `pixels_in_turn` sums between theirs.
template <int P, int G>
void dots(const u8* const* pixel, const Op& op, const Block& block, const int8_t* weights,
          [[maybe_unused]] int64_t stride, int32_t (*sums)[16]) {
    typename Lanes::Sum sum[G][P];
    const int32_t* correction = op.correction + block.channel;
    for (int g = 0; g < G; ++g)
        for (int p = 0; p < P; ++p) sum[g][p] = Lanes::start(correction + 16 * g);
    for (int i = 0; i < op.n_pieces; ++i) {
        const Piece piece = op.pieces[i];
        const u8* at[P];
        for (int p = 0; p < P; ++p) at[p] = pixel[p] + block.offset + piece.offset;
        for (int64_t q = 0; q < 4 * int64_t(piece.quads); q += 4, weights += 64) {
            typename Lanes::Weights w[G];
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) w[g] = Lanes::weights(weights + g * stride);
#pragma GCC unroll 16
            for (int p = 0; p < P; ++p) {
                const typename Lanes::Quad quad = Lanes::quad(at[p] + q);
#pragma GCC unroll 4
                for (int g = 0; g < G; ++g) Lanes::add_dot(sum[g][p], quad, w[g]);
            }
        }
    }
    for (int g = 0; g < G; ++g)
        for (int p = 0; p < P; ++p) Lanes::finish(sum[g][p], sums[g * pixels_in_turn + p]);
}

#if defined(__AVX2__)
// The same with sums of pairs of channels in int16 as long as they fit: pieces say when they have
// to be flushed into the int32 sums.
template <int P>
void short_dots(const u8* const* pixel, const Op& op, const Block& block, const int8_t* weights,
                int64_t, int32_t (*sums)[16]) {
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
                int64_t, int32_t (*sums)[16]) {
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
constexpr int most_groups = Lanes::most >= 12 ? 4 : 1;  // blocks at once

using Dots = void (*)(const u8* const*, const Op&, const Block&, const int8_t*, int64_t,
                      int32_t (*)[16]);

struct Kernel {
    Dots run;
    int pixels;  // that it does
};

constexpr int most_sums = 24;  // of a kernel, in registers: pixels times blocks

// How many pixels a kernel for some blocks does at most.
inline int pixels_at_once(int sums, int groups) {
    if (sums == SHORT) return most_short;
    if (sums == INT16_WEIGHTS) return most_int16;
    return groups == 1 ? Lanes::most : most_sums / groups;
}

// The kernel for so many pixels, or more, and so many blocks.
inline Kernel kernel_for(int count, [[maybe_unused]] int sums, [[maybe_unused]] int groups) {
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
    if constexpr (most_groups >= 4) {
        if (groups == 4) {
            if (count > 3) return {dots<6, 4>, 6};
            return count > 1 ? Kernel{dots<3, 4>, 3} : Kernel{dots<1, 4>, 1};
        }
        if (groups == 3) {
            if (count > 4) return {dots<8, 3>, 8};
            return count > 1 ? Kernel{dots<4, 3>, 4} : Kernel{dots<1, 3>, 1};
        }
        if (groups == 2) {
            if (count > 6) return {dots<12, 2>, 12};
            return count > 2 ? Kernel{dots<6, 2>, 6} : Kernel{dots<2, 2>, 2};
        }
    }
    if constexpr (Lanes::most >= 12)
        if (count > 8) return {dots<std::min(12, Lanes::most), 1>, 12};
    if constexpr (Lanes::most >= 8)
        if (count > 4) return {dots<std::min(8, Lanes::most), 1>, 8};
    if constexpr (Lanes::most >= 4)
        if (count > 2) return {dots<std::min(4, Lanes::most), 1>, 4};
    if (count > 1) return {dots<2, 1>, 2};
    return {dots<1, 1>, 1};
}

// Whether windows are three pixels wide and move on by one.
inline bool three_by_one(const Op& op) {
    return op.kernel[1] == 3 && op.stride[1] == 1 && op.dilation[1] == 1;
}

// P pixels of a row and G blocks, for windows three pixels wide that move on by one: each input is
// read once for all three taps. ``right``: from one pixel to the next.
template <int P, int G>
void row_dots(const u8* first, int64_t right, const Op& op, const Block& block,
              const int8_t* weights, [[maybe_unused]] int64_t stride, int32_t (*sums)[16]) {
    typename Lanes::Sum sum[G][P];
    const int32_t* correction = op.correction + block.channel;
    for (int g = 0; g < G; ++g)
        for (int p = 0; p < P; ++p) sum[g][p] = Lanes::start(correction + 16 * g);
    for (int i = 0; i < op.n_pieces; ++i) {
        const int64_t tap = op.pieces[i].quads / 3 * 64;  // from one tap's weights to the next
        const u8* from = first + block.offset + op.pieces[i].offset;
        for (int64_t q = 0; q < tap; q += 64, from += 4, weights += 64) {
            typename Lanes::Weights w[G][3];
#pragma GCC unroll 2
            for (int g = 0; g < G; ++g)
#pragma GCC unroll 3
                for (int t = 0; t < 3; ++t) w[g][t] = Lanes::weights(weights + g * stride + t * tap);
            const u8* at = from;
#pragma GCC unroll 16
            for (int x = 0; x < P + 2; ++x, at += right) {
                const typename Lanes::Quad quad = Lanes::quad(at);
#pragma GCC unroll 2
                for (int g = 0; g < G; ++g)
#pragma GCC unroll 3
                    for (int t = 0; t < 3; ++t)
                        if (x - t >= 0 && x - t < P) Lanes::add_dot(sum[g][x - t], quad, w[g][t]);
            }
        }
        weights += 2 * tap;
    }
    for (int g = 0; g < G; ++g)
        for (int p = 0; p < P; ++p) Lanes::finish(sum[g][p], sums[g * pixels_in_turn + p]);
}

using RowDots = void (*)(const u8*, int64_t, const Op&, const Block&, const int8_t*, int64_t,
                         int32_t (*)[16]);

struct RowKernel {
    RowDots run;
    int pixels;
};

// The kernel for what is left of a row, which may begin earlier than that.
inline RowKernel row_kernel_for(int left, int columns, [[maybe_unused]] int groups) {
    if constexpr (most_groups >= 2) {
        if (groups == 2) {
            if (left > 8 && columns >= 12) return {row_dots<12, 2>, 12};
            if (left > 4 && columns >= 8) return {row_dots<8, 2>, 8};
            return {row_dots<4, 2>, 4};
        }
        if (left > 8 && columns >= 12) return {row_dots<12, 1>, 12};
        if (left > 4 && columns >= 8) return {row_dots<8, 1>, 8};
    }
    return {row_dots<4, 1>, 4};
}

// Whether `row_dots` knows a layer.
inline bool three_in_a_row(const Op& op, const Value& in) {
    return most_groups >= 2 && op.sums == WHOLE && three_by_one(op) &&
           op.n_pieces == op.kernel[0] && op.pieces[0].quads * 4 == 3 * in.pixel;
}

#if defined(__AVX512VNNI__) || defined(MT_EMULATE_VNNI)
// Sums of one pixel in the order of `join_taps` as 4 blocks of 16, which lie ``stride`` apart.
inline void finish_depthwise(Wide* sum, const int32_t* correction, int stride,
                             int32_t (*sums)[16]) {
    by_channel(sum);
    for (int j = 0; j < 4; ++j)
        wide_store(sums[j * stride], wide_add(sum[j], wide_load(correction + 16 * j)));
}

// 64 sums of a pixel, each channel with weights of its own, in quads of taps.
inline void depthwise_pixel(const u8* pixel, const Op& op, const Block& block, const int8_t* w,
                            int stride, int32_t (*sums)[16]) {
    Wide sum[4] = {wide_all(0), wide_all(0), wide_all(0), wide_all(0)};
    for (int i = 0; i < op.n_pieces; i += 4, w += 256) {
        const u8* taps[4];
        for (int t = 0; t < 4; ++t) {
            const int tap = std::min(i + t, op.n_pieces - 1);  // beyond the last weights are 0
            taps[t] = pixel + block.offset + op.pieces[tap].offset;
        }
        Wide quads[4];
        join_taps(taps, quads);
        for (int k = 0; k < 4; ++k) sum[k] = wide_dot(sum[k], quads[k], wide_load(w + 64 * k));
    }
    finish_depthwise(sum, op.correction + block.channel, stride, sums);
}

// The same for two pixels side by side whose windows are `three_by_one`: four bytes of a row are
// joined once, and meet the weights (w0, w1, w2, 0) and (0, w0, w1, w2).
inline void depthwise_pair(const u8* pixel, int64_t right, const Op& op, const Block& block,
                           const int8_t* w, int stride, int32_t (*sums)[16]) {
    Wide sum[2][4];
    for (int k = 0; k < 4; ++k) sum[0][k] = sum[1][k] = wide_all(0);
    for (int i = 0; i < op.n_pieces; i += 3, w += 512) {
        const u8* from = pixel + block.offset + op.pieces[i].offset;
        const u8* taps[4] = {from, from + right, from + 2 * right, from + 3 * right};
        Wide quads[4];
        join_taps(taps, quads);
        for (int k = 0; k < 4; ++k) {
            sum[0][k] = wide_dot(sum[0][k], quads[k], wide_load(w + 64 * k));
            sum[1][k] = wide_dot(sum[1][k], quads[k], wide_load(w + 256 + 64 * k));
        }
    }
    for (int p = 0; p < 2; ++p)
        finish_depthwise(sum[p], op.correction + block.channel, stride, sums + p);
}
#endif

}  // namespace
