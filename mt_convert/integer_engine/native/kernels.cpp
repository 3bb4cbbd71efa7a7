// The kernels of the native CPU backend: runs of instructions of an integer network, in C++17.
//
// Python (lowering.py) lays all values of one image out in one arena and writes a list of `Op`s;
// `mt_run` runs that list for every image and time step. Small whole numbers are bytes
// (number - low), channels last, with a border of the number 0 around them, so that convolutions
// need no checks at the edges. Other whole numbers are int32, channels last, without border.
//
// Results are those of the written float32 formula to the last bit. Sums of products are exact
// integers, whatever the instruction set; floats are multiplied and added one by one, which is why
// this file must be built with -ffp-contract=off and never with -ffast-math.
//
// Contents: 1 the structures shared with layout.py, 2 eight lanes, 3 dot products, 4 neurons,
// 5 layers, 6 moves and pools, 7 time steps, images and threads.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

using u8 = uint8_t;

// ------------------------------------------------------------------ 1 structures, as in layout.py

enum ValueKind : int32_t { BYTES = 0, INTS = 1 };
enum OpKind : int32_t { LOAD, STORE, DOT, DEPTHWISE, WIDE, NONE, MAX_POOL, SUM_POOL, COPY, FLATTEN };
enum Finish : int32_t { KEEP, FIRE, READ_OUT };
enum Summed : int32_t { OTHERWISE, OWN, OWN_AND_BYTES, BYTES_AND_OWN };  // by channel
enum Sums : int32_t { SHORT, WHOLE, INT16_WEIGHTS };  // which kernel for dot products

extern "C" {

struct Value {             // one value of an image within the arena
    int64_t offset;        // of entry (0, 0, 0), in bytes
    int64_t start, bytes;  // all of it, border included
    int64_t changed;       // 3 * height marks: rows that moved, for steps t % 3
    int32_t kind, height, width, channels;
    int32_t row, pixel;  // entries from one row, or pixel, to the next
    int32_t low, unused;
};

struct Dependence {  // row y of an output needs rows y * step + first ... y * step + last
    int32_t value, step, first, last;
};

struct Piece {  // quads of bytes that lie side by side, from ``offset`` behind the pixel
    int32_t offset, quads, flush, unused;
};

struct Block {  // up to 16 output channels; ``offset`` of the first input channel they read
    int32_t channel, count, offset, unused;
};

struct Constant {  // float32 by channel, if ``pixel`` is not 0 by pixel too; may be null
    const float* data;
    int64_t pixel;
};

struct Term {  // whole numbers (value -1: the op's own sums) times a multiplier
    int64_t value;
    Constant multiplier;
};

struct Op {
    int32_t kind, finish, in, out;
    int32_t rows, columns;  // of pixels that the op runs over
    int32_t external, sums;  // sums: DOT
    int32_t n_blocks, n_pieces, n_terms, n_dependences;
    int32_t kernel[2], stride[2], padding[2], dilation[2];
    int32_t start[3], step[3];  // COPY: (y, x, c) is read at start + step * (y, x, c) and
    int32_t shift[3], channels;  // written at shift + (y, x, c); how many of the last
    int32_t tile;                // rows to finish before going on
    int64_t axes[3];           // distance of rows, columns, channels outside the arena
    float low, high;           // bounds of the running total
    float down, up;            // the largest steps
    float scale;               // LOAD: of images
    uint32_t bits;             // of a float step that may be emitted: all, or sign and exponent
    int64_t target, unsettled; // int16 by pixel and channel; 3 * rows marks
    const int8_t* weights;
    const int32_t* correction;
    const Piece* pieces;
    const Block* blocks;
    const Term* terms;
    const Dependence* dependences;
    Constant bias, offset;
    int32_t summed, unused;  // FIRE: a sum that neurons in int16 know
};

struct External {  // float32 outside the arena
    float* data;
    int64_t image, step;  // entries from one image, or time step, to the next
};

struct Call {
    const Value* values;
    const Op* const* steps;  // the ops of each step
    const Op* last_ops;      // after the last step
    const External* externals;
    u8* arena;
    int64_t arena_bytes;   // of one image
    int64_t marks, n_marks;  // where all marks lie; the last 3 say that a neuron may still move
    int32_t n_values, n_ops, n_last_ops, n_externals;
    int32_t batch, first_step, end_step, threads;
    int32_t keep_images;  // each image has an arena of its own, kept between calls
    int32_t skip;         // the ops of all steps are the same: rows at rest need not run again
};
}

namespace {

// ----------------------------------------------------------------------------- 2 eight lanes
// Arithmetic on 8 numbers at once. Rounding is half to even, |x| at most 2^22.

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

// -------------------------------------------------------------------------- 3 dot products
// Sums of 4 bytes times 4 weights for 16 output channels, for P pixels at once. Weights lie in the
// order of use: for each quad of input channels 16 outputs with 4 weights each.

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

// ------------------------------------------------------------------------------- 4 neurons

struct Image {  // one image on its way through the ops; several threads may share it
    const Call& call;
    u8* arena;
    int64_t index;
    int thread, threads;
    int t;
    bool first, skip;

    u8* mark(int64_t marks, int rows, int row, int t) const {
        return arena + marks + (t % 3) * rows + row;
    }
    u8* bytes(const Value& v, int y, int x) const {
        return arena + v.offset + int64_t(y) * v.row + int64_t(x) * v.pixel;
    }
    int32_t* ints(const Value& v, int y, int x) const {
        return (int32_t*)(arena + v.offset) + int64_t(y) * v.row + int64_t(x) * v.pixel;
    }
    float* external(int i) const {
        const External& e = call.externals[i];
        return e.data + index * e.image + t * e.step;
    }
};

struct Place {  // a pixel of the output
    int y, x;
    int64_t flat;  // y * columns + x
};

inline const float* at(const Constant& c, const Place& place, int channel) {
    return c.data + place.flat * c.pixel + channel;
}

inline Ints numbers(const Image& im, const Value& v, const Place& place, int channel) {
    return v.kind == BYTES ? load(im.bytes(v, place.y, place.x) + channel, v.low)
                           : load(im.ints(v, place.y, place.x) + channel);
}

// The written sum: terms[0] * M_0 + bias + terms[1] * M_1 + ... + offset.
inline Floats real_sum(const Image& im, const Op& op, const int32_t* sums, const Place& place,
                       int channel) {
    Floats total = all(0);
    for (int i = 0; i < op.n_terms; ++i) {
        const Term& term = op.terms[i];
        const Ints n = term.value < 0 ? load(sums)
                                      : numbers(im, im.call.values[term.value], place, channel);
        const Floats product = multiply(to_floats(n), load(at(term.multiplier, place, channel)));
        total = i ? add(total, product) : product;
        if (i == 0 && op.bias.data) total = add(total, load(at(op.bias, place, channel)));
    }
    return op.offset.data ? add(total, load(at(op.offset, place, channel))) : total;
}

inline void store_numbers(const Image& im, const Value& v, const Place& place, int channel,
                          int count, Ints a, Ints b) {
    if (v.kind == BYTES) {
        u8* to = im.bytes(v, place.y, place.x) + channel;
        if (count == 16) return store16(to, a, b, v.low);
        u8 sixteen[16];
        store16(sixteen, a, b, v.low);
        for (int i = 0; i < count; ++i) to[i] = sixteen[i];
    } else {
        int32_t* to = im.ints(v, place.y, place.x) + channel;
        int32_t sixteen[16];
        int32_t* through = count == 16 ? to : sixteen;
        store(through, a);
        store(through + 8, b);
        if (count < 16) std::copy_n(sixteen, count, to);
    }
}

// Marks a row as changed and, where a neuron of it may still move, as unsettled.
inline void mark_row(const Image& im, const Op& op, int y, int changed, int unsettled) {
    const Value& out = im.call.values[op.out];
    if (changed) *im.mark(out.changed, out.height, y, im.t) = 1;
    if (!unsettled) return;
    *im.mark(op.unsettled, op.rows, y, im.t) = 1;
    im.arena[im.call.marks + im.call.n_marks - 3 + im.t % 3] = 1;
}

struct Moves {  // lanes that changed, and lanes that will move on in the next step
    int changed = 0, unsettled = 0;
};

// How neurons move, in registers: copies, for stores of bytes could change anything in memory.
struct Dynamics {
    Floats low, high, down, up;
    uint32_t bits;
    bool watch;  // whether anybody asks what moved

    Dynamics(const Image& im, const Op& op)
        : low(all(op.low)), high(all(op.high)), down(all(op.down)), up(all(op.up)),
          bits(op.bits), watch(im.skip) {}

    Floats target(Floats y) const { return rounded(clamp(y, low, high)); }

    // One step of 8 neurons towards their targets; ``half`` says which 8 of 16.
    Floats step(Floats target, Floats old, int half, Moves& moves) const {
        const Floats now = add(old, masked(clamp(subtract(target, old), down, up), bits));
        if (watch) {
            moves.changed |= differing(now, old) << (8 * half);
            moves.unsettled |= differing(clamp(subtract(target, now), down, up), all(0))
                               << (8 * half);
        }
        return now;
    }
};

inline void store_targets(const Image& im, const Op& op, const Block& block, const Place& place,
                          const Ints* target) {
    const Value& out = im.call.values[op.out];
    int16_t* to = (int16_t*)(im.arena + op.target) + place.flat * out.channels + block.channel;
    if (block.count == 16) return store16(to, target[0], target[1]);
    int16_t sixteen[16];
    store16(sixteen, target[0], target[1]);
    std::copy_n(sixteen, block.count, to);
}

// 16 neurons of some pixels. ``simple``: only the op's own sums by channel, and a bias.
template <bool first, bool simple>
void fire(const Image& im, const Op& op, const Block& block, const int32_t (*sums)[16],
          const Place* places, int count) {
    const Value out = im.call.values[op.out];
    const Dynamics dynamics(im, op);
    const Block here = block;
    Floats factor[2] = {}, bias[2] = {};
    for (int h = 0; simple && h < 2; ++h) {
        factor[h] = load(op.terms[0].multiplier.data + here.channel + 8 * h);
        bias[h] = load(op.bias.data + here.channel + 8 * h);
    }
    const int valid = (1 << here.count) - 1;
    Moves row;
    for (int p = 0; p < count; ++p) {
        const Place place = places[p];
        Ints target[2], total[2];
        Moves moves;
        for (int h = 0; h < 2; ++h) {
            const int c = here.channel + 8 * h;
            const Floats y = simple
                ? add(multiply(to_floats(load(sums[p] + 8 * h)), factor[h]), bias[h])
                : real_sum(im, op, sums[p] + 8 * h, place, c);
            const Floats q = dynamics.target(y);
            const Floats old = first ? all(0) : to_floats(numbers(im, out, place, c));
            target[h] = to_ints(q);
            total[h] = to_ints(dynamics.step(q, old, h, moves));
        }
        store_numbers(im, out, place, here.channel, here.count, total[0], total[1]);
        if (!dynamics.watch) continue;
        store_targets(im, op, here, place, target);
        row.changed |= moves.changed & valid;
        row.unsettled |= moves.unsettled & valid;
        if (p + 1 < count && places[p + 1].y == place.y) continue;
        mark_row(im, op, place.y, row.changed, row.unsettled);
        row = {};
    }
}

#if defined(__AVX2__)
// 16 neurons of some pixels in int16, as most networks have them: totals are bytes, the ladder is
// uniform, and the sum is one of `Summed`. ``watch``: somebody asks what moved.
template <bool first, bool watch, int summed>
void fire_short(const Image& im, const Op& op, const Block& block, const int32_t (*sums)[16],
                const Place* places, int count) {
    static const float zeros[16] = {};
    const int channel = block.channel;
    constexpr int own_term = summed == BYTES_AND_OWN;
    const Value out = im.call.values[op.out];
    const float* bias_data = op.bias.data ? op.bias.data + channel : zeros;
    const Floats bias[2] = {load(bias_data), load(bias_data + 8)};
    const float* own_data = op.terms[own_term].multiplier.data + channel;
    const Floats own[2] = {load(own_data), load(own_data + 8)};
    Value other = {};
    Floats factor[2] = {};
    if (summed != OWN) {
        const Term& term = op.terms[1 - own_term];
        other = im.call.values[term.value];
        factor[0] = load(term.multiplier.data + channel);
        factor[1] = load(term.multiplier.data + channel + 8);
    }
    const Floats low = all(op.low), high = all(op.high);
    const __m256i start = _mm256_set1_epi16(int16_t(out.low)), zero = _mm256_setzero_si256();
    const __m256i down = _mm256_set1_epi16(int16_t(op.down));
    const __m256i up = _mm256_set1_epi16(int16_t(op.up));
    u8* const totals = im.bytes(out, 0, 0) + channel;
    const u8* const others = summed == OWN ? nullptr : im.bytes(other, 0, 0) + channel;
    int16_t* const targets = (int16_t*)(im.arena + op.target) + channel;
    __m256i changed = zero, unsettled = zero;
    for (int p = 0; p < count; ++p) {
        const Place place = places[p];
        u8* total = totals + int64_t(place.y) * out.row + int64_t(place.x) * out.pixel;
        Ints whole[2];
        for (int h = 0; h < 2; ++h) {
            const Floats mine = multiply(to_floats(load(sums[p] + 8 * h)), own[h]);
            Floats y = add(mine, bias[h]);
            if (summed != OWN) {
                const u8* from =
                    others + int64_t(place.y) * other.row + int64_t(place.x) * other.pixel + 8 * h;
                const Floats given = multiply(to_floats(load(from, other.low)), factor[h]);
                y = summed == OWN_AND_BYTES ? add(y, given) : add(add(given, bias[h]), mine);
            }
            whole[h] = to_ints(clamp(y, low, high));  // rounds, half to even
        }
        const __m256i target = pack16(whole[0], whole[1]);
        const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)total));
        const __m256i old = first ? zero : _mm256_add_epi16(bytes, start);
        const __m256i way = _mm256_subs_epi16(target, old);
        const __m256i step = _mm256_min_epi16(_mm256_max_epi16(way, down), up);
        const __m256i now = _mm256_add_epi16(old, step);
        const __m256i stored = _mm256_sub_epi16(now, start);
        _mm_storeu_si128((__m128i*)total, _mm_packus_epi16(_mm256_castsi256_si128(stored),
                                                            _mm256_extracti128_si256(stored, 1)));
        if (!watch) continue;
        _mm256_storeu_si256((__m256i*)(targets + place.flat * out.channels), target);
        changed = _mm256_or_si256(changed, step);
        const __m256i left = _mm256_max_epi16(_mm256_subs_epi16(target, now), down);
        unsettled = _mm256_or_si256(unsettled, left);
        if (p + 1 < count && places[p + 1].y == place.y) continue;
        mark_row(im, op, place.y, !_mm256_testz_si256(changed, changed),
                 !_mm256_testz_si256(unsettled, unsettled));
        changed = unsettled = zero;
    }
}

using Firing = void (*)(const Image&, const Op&, const Block&, const int32_t (*)[16], const Place*,
                        int);

template <int summed>
Firing short_firing(const Image& im) {
    if (im.first) return im.skip ? fire_short<true, true, summed> : fire_short<true, false, summed>;
    return im.skip ? fire_short<false, true, summed> : fire_short<false, false, summed>;
}
#endif

// A row of neurons whose input is that of the step before: on towards their old targets.
void move_row(const Image& im, const Op& op, int y, int b0, int b1) {
    if (!*im.mark(op.unsettled, op.rows, y, im.t - 1)) return;
    const Value out = im.call.values[op.out];
    const Dynamics dynamics(im, op);
    int changed = 0, unsettled = 0;
    for (int x = 0; x < op.columns; ++x) {
        const Place place = {y, x, int64_t(y) * op.columns + x};
        const int16_t* target = (int16_t*)(im.arena + op.target) + place.flat * out.channels;
        for (int b = b0; b < b1; ++b) {
            const Block& block = op.blocks[b];
            Ints total[2];
            Moves moves;
            for (int h = 0; h < 2; ++h) {
                const int c = block.channel + 8 * h;
                const Floats old = to_floats(numbers(im, out, place, c));
                total[h] = to_ints(dynamics.step(to_floats(load(target + c)), old, h, moves));
            }
            store_numbers(im, out, place, block.channel, block.count, total[0], total[1]);
            const int valid = (1 << block.count) - 1;
            changed |= moves.changed & valid;
            unsettled |= moves.unsettled & valid;
        }
    }
    mark_row(im, op, y, changed, unsettled);
}

// What becomes of 16 sums at some pixels: neurons fire, logits are read out, or sums are kept.
void finish(const Image& im, const Op& op, const Block& block, const int32_t (*sums)[16],
            const Place* places, int count) {
    if (op.finish == FIRE) {
#if defined(__AVX2__)
        if (op.summed != OTHERWISE && block.count == 16) {
            const Firing run = op.summed == OWN             ? short_firing<OWN>(im)
                               : op.summed == OWN_AND_BYTES ? short_firing<OWN_AND_BYTES>(im)
                                                            : short_firing<BYTES_AND_OWN>(im);
            return run(im, op, block, sums, places, count);
        }
#endif
        const Term& term = op.terms[0];
        const bool simple = op.n_terms == 1 && term.value < 0 && term.multiplier.pixel == 0 &&
                            op.bias.data && op.bias.pixel == 0 && !op.offset.data;
        const auto run = simple ? (im.first ? fire<true, true> : fire<false, true>)
                                : (im.first ? fire<true, false> : fire<false, false>);
        return run(im, op, block, sums, places, count);
    }
    for (int p = 0; p < count; ++p) {
        const Place& place = places[p];
        if (op.finish == KEEP) {
            const Value& out = im.call.values[op.out];
            const Ints a = load(sums[p]), b = load(sums[p] + 8);
            store_numbers(im, out, place, block.channel, block.count, a, b);
            continue;
        }
        float real[16];
        store(real, real_sum(im, op, sums[p], place, block.channel));
        store(real + 8, real_sum(im, op, sums[p] + 8, place, block.channel + 8));
        float* to = im.external(op.external) + place.y * op.axes[0] + place.x * op.axes[1];
        for (int i = 0; i < block.count; ++i) to[(block.channel + i) * op.axes[2]] = real[i];
    }
}

// -------------------------------------------------------------------------------- 5 layers

struct Span {  // rows and blocks of channels to do
    int y0, y1, b0, b1;
};

inline const u8* input_at(const Image& im, const Op& op, int y, int x) {
    const Value& in = im.call.values[op.in];
    return im.bytes(in, y * op.stride[0] - op.padding[0], x * op.stride[1] - op.padding[1]);
}

// Convolutions and linear layers: some rows at a time, whose input stays in the L1 cache, block of
// channels by block, as many pixels at once as registers hold.
void dot_layer(const Image& im, const Op& op, const Span& span) {
    int64_t quads = 0;
    for (int i = 0; i < op.n_pieces; ++i) quads += op.pieces[i].quads;
    const bool wide_weights = op.sums == INT16_WEIGHTS;
    const int most = op.sums == SHORT ? most_short : wide_weights ? most_int16 : Lanes::most;
    const Value& in = im.call.values[op.in];
    const int64_t right = int64_t(op.stride[1]) * in.pixel, down = int64_t(op.stride[0]) * in.row;
    const u8* start = input_at(im, op, 0, 0);
    const int columns = op.columns;
    alignas(64) int32_t sums[most_pixels][16];
    const u8* pixel[most_pixels] = {};
    Place place[most_pixels];
    for (int y0 = span.y0; y0 < span.y1; y0 += op.tile) {
        const int count = (std::min(span.y1, y0 + op.tile) - y0) * columns;
        for (int b = span.b0; b < span.b1; ++b) {
            const Block& block = op.blocks[b];
            const int8_t* weights = op.weights + b * quads * (wide_weights ? 128 : 64);
            int y = y0, x = 0;
            for (int i = 0; i < count; i += most) {
                const int n = std::min(most, count - i);
                const Kernel kernel = kernel_for(n, op.sums);
                for (int p = 0; p < n; ++p) {
                    place[p] = {y, x, int64_t(y) * columns + x};
                    pixel[p] = start + y * down + x * right;
                    if (++x == columns) x = 0, ++y;
                }
                for (int p = n; p < kernel.pixels; ++p) pixel[p] = pixel[0];
                kernel.run(pixel, op, block, weights, sums);
                finish(im, op, block, sums, place, n);
            }
        }
    }
}

// 16 sums of one pixel, each channel with weights of its own.
inline void depthwise(const u8* pixel, const Op& op, const Block& block, const int8_t* w,
                      int32_t* sums) {
    int32_t sum[16];
    std::memcpy(sum, op.correction + block.channel, sizeof sum);
    for (int i = 0; i < op.n_pieces; ++i, w += 16) {
        const u8* from = pixel + block.offset + op.pieces[i].offset;
#if defined(__AVX2__)
        const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)from));
        const __m256i by = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)w));
        const __m256i product = _mm256_mullo_epi16(wide, by);  // at most 255 * 127: fits
        store(sum, _mm256_add_epi32(load(sum), _mm256_cvtepi16_epi32(
                                                   _mm256_castsi256_si128(product))));
        store(sum + 8, _mm256_add_epi32(load(sum + 8), _mm256_cvtepi16_epi32(
                                                           _mm256_extracti128_si256(product, 1))));
#else
        for (int c = 0; c < 16; ++c) sum[c] += int32_t(from[c]) * w[c];
#endif
    }
    std::memcpy(sums, sum, sizeof sum);
}

// 16 sums of one pixel over int32 numbers: a linear layer, or a convolution of size 1.
inline void wide_linear(const int32_t* pixel, int channels, const int8_t* w, int32_t* sums) {
    int32_t sum[16] = {};
    for (int k = 0; k < channels; ++k, w += 16)
        for (int c = 0; c < 16; ++c) sum[c] += pixel[k] * w[c];
    std::memcpy(sums, sum, sizeof sum);
}

void other_layer(const Image& im, const Op& op, const Span& span) {
    alignas(64) int32_t sums[1][16] = {};
    for (int y = span.y0; y < span.y1; ++y) {
        for (int x = 0; x < op.columns; ++x) {
            const Place place = {y, x, int64_t(y) * op.columns + x};
            for (int b = span.b0; b < span.b1; ++b) {
                const Block& block = op.blocks[b];
                if (op.kind == DEPTHWISE) {
                    const int8_t* weights = op.weights + int64_t(b) * op.n_pieces * 16;
                    depthwise(input_at(im, op, y, x), op, block, weights, sums[0]);
                } else if (op.kind == WIDE) {
                    const Value& in = im.call.values[op.in];
                    const int8_t* weights = op.weights + int64_t(b) * in.channels * 16;
                    wide_linear(im.ints(in, y, x), in.channels, weights, sums[0]);
                }
                finish(im, op, block, sums, &place, 1);
            }
        }
    }
}

// ----------------------------------------------------------------------- 6 moves and pools

template <class Act>
void each_channel(const Op& op, const Value& v, const Span& span, Act act) {
    for (int y = span.y0; y < span.y1; ++y)
        for (int x = 0; x < op.columns; ++x)
            for (int c = 0; c < v.channels; ++c) act(y, x, c);
}

inline int32_t number_at(const Image& im, const Value& v, int y, int x, int c) {
    return v.kind == BYTES ? im.bytes(v, y, x)[c] + v.low : im.ints(v, y, x)[c];
}

inline void put(const Image& im, const Value& v, int y, int x, int c, int32_t number) {
    if (v.kind == BYTES) im.bytes(v, y, x)[c] = u8(number - v.low);
    else im.ints(v, y, x)[c] = number;
}

// Floats from outside as whole numbers, images divided by their scale.
void load_rows(const Image& im, const Op& op, const Span& span) {
    const Value out = im.call.values[op.out];
    const int pixel = out.pixel;
    const float* from = im.external(op.external);
    for (int c = 0; c < out.channels; ++c) {
        for (int y = span.y0; y < span.y1; ++y) {
            const float* row = from + y * op.axes[0] + c * op.axes[2];
            for (int x0 = 0; x0 < op.columns; x0 += 64) {
                const int n = std::min(64, op.columns - x0);
                int32_t whole[64];
                float ratio[64] = {};
                for (int i = 0; i < n; ++i) ratio[i] = row[(x0 + i) * op.axes[1]];
                if (op.scale != 0) {  // |levels| stay far below 2^22
                    for (int i = 0; i < 64; ++i) ratio[i] = ratio[i] / op.scale;
                    for (int i = 0; i < 64; i += 8)
                        store(ratio + i, rounded(clamp(load(ratio + i), all(op.low), all(op.high))));
                }
                for (int i = 0; i < 64; ++i) whole[i] = int32_t(ratio[i]) - out.low;
                if (out.kind == BYTES) {
                    u8* to = im.bytes(out, y, x0) + c;
                    for (int i = 0; i < n; ++i, to += pixel) *to = u8(whole[i]);
                } else {
                    int32_t* to = im.ints(out, y, x0) + c;
                    for (int i = 0; i < n; ++i, to += pixel) *to = whole[i];
                }
            }
        }
    }
}

void store_rows(const Image& im, const Op& op, const Span& span) {
    const Value& in = im.call.values[op.in];
    float* to = im.external(op.external);
    each_channel(op, in, span, [&](int y, int x, int c) {
        to[y * op.axes[0] + x * op.axes[1] + c * op.axes[2]] = float(number_at(im, in, y, x, c));
    });
}

inline u8* entry(const Image& im, const Value& v, int y, int x, int c) {
    return v.kind == BYTES ? im.bytes(v, y, x) + c : (u8*)(im.ints(v, y, x) + c);
}

// A part of a value into a part of another: slices, concatenation, zeros around it.
void copy_rows(const Image& im, const Op& op, const Span& span) {
    const Value in = im.call.values[op.in], out = im.call.values[op.out];
    const int size = in.kind == BYTES ? 1 : 4;
    const bool alike = in.kind == out.kind && in.low == out.low && op.step[2] == 1;
    const bool whole_pixels = alike && op.channels == in.channels && op.channels == out.channels;
    for (int y = span.y0; y < span.y1; ++y) {
        const int row = op.start[0] + y * op.step[0];
        if (whole_pixels && op.step[1] == 1) {
            std::memcpy(entry(im, out, op.shift[0] + y, op.shift[1], 0),
                        entry(im, in, row, op.start[1], 0), size_t(op.columns) * in.pixel * size);
            continue;
        }
        for (int x = 0; x < op.columns; ++x) {
            const int column = op.start[1] + x * op.step[1];
            if (alike) {
                std::memcpy(entry(im, out, op.shift[0] + y, op.shift[1] + x, op.shift[2]),
                            entry(im, in, row, column, op.start[2]), size_t(op.channels) * size);
                continue;
            }
            for (int c = 0; c < op.channels; ++c)
                put(im, out, op.shift[0] + y, op.shift[1] + x, op.shift[2] + c,
                    number_at(im, in, row, column, op.start[2] + c * op.step[2]));
        }
    }
}

// All numbers of a value in the order that torch gives them, as channels of one pixel.
void flatten(const Image& im, const Op& op) {
    const Value &in = im.call.values[op.in], &out = im.call.values[op.out];
    for (int y = 0; y < in.height; ++y)
        for (int x = 0; x < in.width; ++x)
            for (int c = 0; c < in.channels; ++c)
                put(im, out, 0, 0, int(y * op.axes[0] + x * op.axes[1] + c * op.axes[2]),
                    number_at(im, in, y, x, c));
}

// Calls act(row, column) for the entries of a window that lie within the input.
template <class Act>
void in_window(const Value& in, const Op& op, int y, int x, Act act) {
    for (int i = 0; i < op.kernel[0]; ++i)
        for (int j = 0; j < op.kernel[1]; ++j) {
            const int row = y * op.stride[0] - op.padding[0] + i * op.dilation[0];
            const int column = x * op.stride[1] - op.padding[1] + j * op.dilation[1];
            const bool inside = row >= 0 && row < in.height && column >= 0 && column < in.width;
            if (inside) act(row, column);
        }
}

void max_pool(const Image& im, const Op& op, const Span& span) {
    const Value &in = im.call.values[op.in], &out = im.call.values[op.out];
    for (int y = span.y0; y < span.y1; ++y)
        for (int x = 0; x < op.columns; ++x) {
            u8* to = im.bytes(out, y, x);
            const int channels = in.channels;
            std::memset(to, 0, size_t(channels));
            in_window(in, op, y, x, [&](int row, int column) {
                const u8* from = im.bytes(in, row, column);
                for (int c = 0; c < channels; ++c) to[c] = std::max(to[c], from[c]);
            });
        }
}

void sum_pool(const Image& im, const Op& op, const Span& span) {
    const Value &in = im.call.values[op.in], &out = im.call.values[op.out];
    int32_t some[64];
    for (int y = span.y0; y < span.y1; ++y)
        for (int x = 0; x < op.columns; ++x)
            for (int c0 = 0; c0 < in.channels; c0 += 64) {
                const int n = std::min(64, in.channels - c0);
                std::fill_n(some, 64, 0);
                int entries = 0;
                in_window(in, op, y, x, [&](int row, int column) {
                    ++entries;
                    if (in.kind == BYTES) {
                        const u8* from = im.bytes(in, row, column) + c0;
                        for (int c = 0; c < n; ++c) some[c] += from[c];
                    } else {
                        const int32_t* from = im.ints(in, row, column) + c0;
                        for (int c = 0; c < n; ++c) some[c] += from[c];
                    }
                });
                const int32_t shift = in.kind == BYTES ? entries * in.low : 0;
                for (int c = 0; c < n; ++c) put(im, out, y, x, c0 + c, some[c] + shift);
            }
}

// ------------------------------------------------------- 7 time steps, images and threads

void run_rows(const Image& im, const Op& op, const Span& span) {
    switch (op.kind) {
        case LOAD: return load_rows(im, op, span);
        case STORE: return store_rows(im, op, span);
        case DOT: return dot_layer(im, op, span);
        case MAX_POOL: return max_pool(im, op, span);
        case SUM_POOL: return sum_pool(im, op, span);
        case COPY: return copy_rows(im, op, span);
        case FLATTEN: return flatten(im, op);
        default: return other_layer(im, op, span);
    }
}

// Whether anything that a row is made of moved in this step.
bool row_needed(const Image& im, const Op& op, int y) {
    if (op.finish == READ_OUT) return true;  // logits of every step
    for (int i = 0; i < op.n_dependences; ++i) {
        const Dependence& needs = op.dependences[i];
        const Value& v = im.call.values[needs.value];
        const int from = std::max(0, y * needs.step + needs.first);
        const int to = std::min(v.height - 1, y * needs.step + needs.last);
        for (int row = from; row <= to; ++row)
            if (*im.mark(v.changed, v.height, row, im.t)) return true;
    }
    return false;
}

// An op with rows at rest left out, in runs of rows that are not.
void run_moving_rows(const Image& im, const Op& op, const Span& span) {
    const Value* out = op.out >= 0 ? &im.call.values[op.out] : nullptr;
    for (int y = span.y0; y < span.y1; ++y) {
        if (out) *im.mark(out->changed, out->height, y + op.shift[0], im.t + 1) = 0;
        if (op.finish == FIRE) *im.mark(op.unsettled, op.rows, y, im.t + 1) = 0;
    }
    if (im.first) return run_rows(im, op, span);
    for (int y = span.y0; y < span.y1;) {
        int end = y;
        while (end < span.y1 && row_needed(im, op, end)) ++end;
        if (end > y) run_rows(im, op, {y, end, span.b0, span.b1});
        if (end > y && op.finish != FIRE && out)
            for (int row = y; row < end; ++row)
                *im.mark(out->changed, out->height, row + op.shift[0], im.t) = 1;
        if (end < span.y1 && op.finish == FIRE) move_row(im, op, end, span.b0, span.b1);
        y = end + 1;
    }
}

// One op, or this thread's share of it: some of the rows, or of the channels of a single row.
void run_op(const Image& im, const Op& op) {
    Span span = {0, op.rows, 0, op.n_blocks};
    if (im.threads > 1) {
        const bool by_rows = op.rows >= im.threads || op.n_blocks == 0;
        int& from = by_rows ? span.y0 : span.b0;
        int& to = by_rows ? span.y1 : span.b1;
        const int64_t all = to;
        from = int(all * im.thread / im.threads);
        to = int(all * (im.thread + 1) / im.threads);
    }
    if (span.y0 < span.y1) im.skip ? run_moving_rows(im, op, span) : run_rows(im, op, span);
}

void wait_for_others(const Image& im) {
    if (im.threads > 1) {
#pragma omp barrier
    }
}

// All steps of one image. At rest, what the step said holds for all that would follow.
void run_image(Image im) {
    const Call& call = im.call;
    u8* marks = im.arena + call.marks;
    if (im.skip && im.thread == 0) std::memset(marks, 0, size_t(call.n_marks));
    wait_for_others(im);
    for (im.t = call.first_step; im.t < call.end_step; ++im.t) {
        im.first = im.t == 0;
        u8* moving = marks + call.n_marks - 3;
        if (im.skip) moving[(im.t + 1) % 3] = 0;
        const Op* ops = call.steps[im.t - call.first_step];
        for (int i = 0; i < call.n_ops; ++i) {
            run_op(im, ops[i]);
            wait_for_others(im);
        }
        if (!im.skip || moving[im.t % 3]) continue;
        for (int i = 0; i < call.n_externals && im.thread == 0; ++i) {
            const External& e = call.externals[i];
            if (e.step == 0) continue;
            const float* rest = im.external(i);
            for (int t = im.t + 1; t < call.end_step; ++t)
                std::copy_n(rest, e.image, e.data + im.index * e.image + t * e.step);
        }
        break;
    }
    im.skip = false;
    im.t = 0;
    for (int i = 0; i < call.n_last_ops; ++i) run_op(im, call.last_ops[i]);
    wait_for_others(im);
}

}  // namespace

extern "C" {

// Sizes of the structures, for build.py to compare with its own.
void mt_sizes(int64_t* sizes) {
    const int64_t all[] = {sizeof(Value), sizeof(Dependence), sizeof(Piece), sizeof(Block),
                           sizeof(Term),  sizeof(Op),         sizeof(External), sizeof(Call)};
    std::copy(std::begin(all), std::end(all), sizes);
}

// Fills a new arena with the number 0: the borders stay as they are from then on.
void mt_prepare(const Value* values, int32_t n_values, u8* arena) {
    for (int i = 0; i < n_values; ++i) {
        const int zero = values[i].kind == BYTES ? -values[i].low : 0;
        std::memset(arena + values[i].start, zero, size_t(values[i].bytes));
    }
}

void mt_run(const Call* call) {
    const auto image = [&](int64_t index, int thread, int threads) {
        const int64_t arena = call->keep_images ? index : threads > 1 ? 0 : thread;
        u8* start = call->arena + arena * call->arena_bytes;
        const int who = threads > 1 ? thread : 0;
        run_image({*call, start, index, who, threads, 0, true, call->skip != 0});
    };
    if (call->threads == 1) {
        for (int i = 0; i < call->batch; ++i) image(i, 0, 1);
    } else if (call->batch >= call->threads) {  // each thread its own images
#pragma omp parallel for schedule(dynamic) num_threads(call->threads)
        for (int i = 0; i < call->batch; ++i) image(i, omp_get_thread_num(), 1);
    } else {  // all threads share each image
#pragma omp parallel num_threads(call->threads)
        for (int i = 0; i < call->batch; ++i) image(i, omp_get_thread_num(), omp_get_num_threads());
    }
}
}
