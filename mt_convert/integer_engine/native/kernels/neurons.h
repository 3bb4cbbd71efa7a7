// Neurons in registers: sums of products become levels, logits, or stay sums.

#pragma once

#include <algorithm>

#include "functions.h"
#include "image.h"
#include "lanes.h"

namespace {

inline const float* at(const Constant& c, const Place& place, int channel) {
    return c.data + place.flat * c.pixel + channel;
}

inline Ints numbers(const Image& im, const Value& v, const Place& place, int channel) {
    return v.kind == BYTES ? load(im.bytes(v, place.y, place.x) + channel, v.low)
                           : load(im.ints(v, place.y, place.x) + channel);
}

// The written sum: terms[0] * M_0 + bias + terms[1] * M_1 + ...
inline Floats written_sum(const Image& im, const Op& op, const int32_t* sums, const Place& place,
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
    return total;
}

// What neurons compare with whole numbers: the sum, or the level of a function of it, + offset.
inline Floats drive(const Op& op, const Place& place, int channel, Floats sum) {
    if (op.thresholds) sum = level_of(*op.thresholds, channel, sum);
    return op.offset.data ? add(sum, load(at(op.offset, place, channel))) : sum;
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

// 16 neurons of some pixels, of functions too. ``simple``: only the op's own sums by channel, and a
// bias.
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
            const Floats sum = simple
                ? add(multiply(to_floats(load(sums[p] + 8 * h)), factor[h]), bias[h])
                : written_sum(im, op, sums[p] + 8 * h, place, c);
            const Floats y = drive(op, place, c, sum);
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

using Firing = void (*)(const Image&, const Op&, const Block&, const int32_t (*)[16], const Place*,
                        int);

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define MT_SUMMED_FIRING
// 16 neurons of some pixels at once, as most networks have them: totals are bytes, the ladder is
// uniform, and the sum is one of `Summed`. ``watch``: somebody asks what moved.
template <bool first, bool watch, int summed>
void fire_summed(const Image& im, const Op& op, const Block& block, const int32_t (*sums)[16],
                 const Place* places, int count) {
    const int channel = block.channel;
    const __mmask16 valid = __mmask16((1u << block.count) - 1);
    constexpr int own_term = summed == BYTES_AND_OWN;
    const Value out = im.call.values[op.out];
    const __m512 bias = op.bias.data ? _mm512_loadu_ps(op.bias.data + channel)
                                     : _mm512_setzero_ps();
    const __m512 own = _mm512_loadu_ps(op.terms[own_term].multiplier.data + channel);
    Value other = {};
    __m512 factor = _mm512_setzero_ps();
    if (summed != OWN) {
        const Term& term = op.terms[1 - own_term];
        other = im.call.values[term.value];
        factor = _mm512_loadu_ps(term.multiplier.data + channel);
    }
    // From 0, the bounds of the first step are bounds of the total.
    constexpr bool once = first && !watch;
    const __m512 low = _mm512_set1_ps(once ? std::max(op.low, op.down) : op.low);
    const __m512 high = _mm512_set1_ps(once ? std::min(op.high, op.up) : op.high);
    const __m512i start = _mm512_set1_epi32(out.low), others_low = _mm512_set1_epi32(other.low);
    const __m512i down = _mm512_set1_epi32(int32_t(op.down));
    const __m512i up = _mm512_set1_epi32(int32_t(op.up));
    u8* const totals = im.bytes(out, 0, 0) + channel;
    const u8* const others = summed == OWN ? nullptr : im.bytes(other, 0, 0) + channel;
    int16_t* const targets = (int16_t*)(im.arena + op.target) + channel;
    __mmask16 changed = 0, unsettled = 0;
    for (int p = 0; p < count; ++p) {
        const Place& place = places[p];
        u8* total = totals + place.out;
        const __m512 mine = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sums[p])), own);
        __m512 y = _mm512_add_ps(mine, bias);
        if (summed != OWN) {
            const u8* from = others + int64_t(place.y) * other.row + int64_t(place.x) * other.pixel;
            const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
            const __m512i whole = _mm512_add_epi32(bytes, others_low);
            const __m512 given = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), factor);
            y = summed == OWN_AND_BYTES ? _mm512_add_ps(y, given)
                                        : _mm512_add_ps(_mm512_add_ps(given, bias), mine);
        }
        const __m512i target =  // rounds, half to even
            _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(y, low), high));
        __m512i now = target, step = target;
        if (!once) {
            const __m128i bytes = _mm_loadu_si128((const __m128i*)total);
            const __m512i old = first ? _mm512_setzero_si512()
                                      : _mm512_add_epi32(_mm512_cvtepu8_epi32(bytes), start);
            step = _mm512_min_epi32(_mm512_max_epi32(_mm512_sub_epi32(target, old), down), up);
            now = _mm512_add_epi32(old, step);
        }
        const __m128i stored = _mm512_cvtepi32_epi8(_mm512_sub_epi32(now, start));
        if (valid == 0xffff) _mm_storeu_si128((__m128i*)total, stored);
        else _mm_mask_storeu_epi8(total, valid, stored);
        if (!watch) continue;
        _mm256_mask_storeu_epi16(targets + place.flat * out.channels, valid,
                                 _mm512_cvtepi32_epi16(target));
        changed |= _mm512_mask_test_epi32_mask(valid, step, step);
        const __m512i left = _mm512_max_epi32(_mm512_sub_epi32(target, now), down);
        unsettled |= _mm512_mask_test_epi32_mask(valid, left, left);
        if (p + 1 < count && places[p + 1].y == place.y) continue;
        mark_row(im, op, place.y, changed, unsettled);
        changed = unsettled = 0;
    }
}

// Fewer than 16 channels too.
inline bool fires_summed(const Op& op, const Block&) { return op.summed != OTHERWISE; }

#define MT_FIRES_SIDE_BY_SIDE
// Whether the only step of neurons side by side is a saturating conversion: from 0, with nobody
// asking what moved, and no level below the least byte.
inline bool fires_side_by_side(const Image& im, const Op& op, const Block* block, int blocks) {
    if (blocks < 2 || op.finish != FIRE || op.summed != OWN || !im.first || im.skip) return false;
    const Value& out = im.call.values[op.out];
    return std::max(op.low, op.down) == float(out.low) &&
           block[blocks - 1].channel == block[0].channel + 16 * (blocks - 1);
}

// The first step of G blocks of neurons at some pixels; the sums of a block lie ``apart`` rows
// behind those of the one before.
template <int G, bool from_zero>
void fire_side_by_side(const Image& im, const Op& op, const Block* block,
                       const int32_t (*sums)[16], int apart, const Place* places, int count) {
    const Value out = im.call.values[op.out];
    __m512 own[4] = {}, bias[4] = {};
    for (int g = 0; g < G; ++g) {
        own[g] = _mm512_loadu_ps(op.terms[0].multiplier.data + block[g].channel);
        if (op.bias.data) bias[g] = _mm512_loadu_ps(op.bias.data + block[g].channel);
    }
    const __m512 high = _mm512_set1_ps(std::min(op.high, op.up));
    const __m512i start = _mm512_set1_epi32(out.low);
    const __m512i order =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __mmask64 valid = ~0ull >> (64 - 16 * (G - 1) - block[G - 1].count);
    u8* const totals = im.bytes(out, 0, 0) + block->channel;
    for (int p = 0; p < count; ++p) {
        __m512i level[4] = {};
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums[g * apart + p]));
            const __m512 y = _mm512_add_ps(_mm512_mul_ps(sum, own[g]), bias[g]);
            level[g] = _mm512_cvtps_epi32(_mm512_min_ps(y, high));  // rounds, half to even
            if (!from_zero) level[g] = _mm512_sub_epi32(level[g], start);
        }
        const __m512i first = _mm512_packs_epi32(level[0], level[1]);
        const __m512i second = _mm512_packs_epi32(level[2], level[3]);
        const __m512i bytes =  // what is below is the least level
            _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
        u8* const to = totals + places[p].out;
        if (valid == ~0ull) _mm512_storeu_si512(to, bytes);
        else _mm512_mask_storeu_epi8(to, valid, bytes);
    }
}
#elif defined(__AVX2__)
#define MT_SUMMED_FIRING
// 16 neurons of some pixels in int16, as most networks have them: totals are bytes, the ladder is
// uniform, and the sum is one of `Summed`. ``watch``: somebody asks what moved.
template <bool first, bool watch, int summed>
void fire_summed(const Image& im, const Op& op, const Block& block, const int32_t (*sums)[16],
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
        u8* total = totals + place.out;
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

inline bool fires_summed(const Op& op, const Block& block) {
    return op.summed != OTHERWISE && block.count == 16;
}
#endif

#if defined(MT_SUMMED_FIRING)
template <int summed>
Firing summed_firing(const Image& im) {
    if (im.first) return im.skip ? fire_summed<true, true, summed> : fire_summed<true, false, summed>;
    return im.skip ? fire_summed<false, true, summed> : fire_summed<false, false, summed>;
}
#endif

// A row of neurons whose input is that of the step before: on towards their old targets.
void move_row(const Image& im, const Op& op, int y, int b0, int b1) {
    if (!*im.mark(op.unsettled, op.rows, y, im.t - 1)) return;
    const Value out = im.call.values[op.out];
    const Dynamics dynamics(im, op);
    int changed = 0, unsettled = 0;
    for (int x = 0; x < op.columns; ++x) {
        const Place place = place_of(im, op, y, x);
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

void finish(const Image& im, const Op& op, const Block& block, const int32_t (*sums)[16],
            const Place* places, int count);

// The same of some blocks, the sums of one ``apart`` rows behind those of the block before.
inline void finish_blocks(const Image& im, const Op& op, const Block* block, int blocks,
                          const int32_t (*sums)[16], int apart, const Place* places, int count) {
#if defined(MT_FIRES_SIDE_BY_SIDE)
    if (fires_side_by_side(im, op, block, blocks)) {
        const bool from_zero = im.call.values[op.out].low == 0;
        const auto run = blocks == 2 ? (from_zero ? fire_side_by_side<2, true>
                                                  : fire_side_by_side<2, false>)
                         : blocks == 3 ? (from_zero ? fire_side_by_side<3, true>
                                                    : fire_side_by_side<3, false>)
                                       : (from_zero ? fire_side_by_side<4, true>
                                                    : fire_side_by_side<4, false>);
        return run(im, op, block, sums, apart, places, count);
    }
#endif
    for (int g = 0; g < blocks; ++g) finish(im, op, block[g], sums + g * apart, places, count);
}

// What becomes of 16 sums at some pixels: neurons fire, logits are read out, or sums are kept.
void finish(const Image& im, const Op& op, const Block& block, const int32_t (*sums)[16],
            const Place* places, int count) {
    if (op.finish == FIRE) {
#if defined(MT_SUMMED_FIRING)
        if (fires_summed(op, block)) {
            const Firing run = op.summed == OWN             ? summed_firing<OWN>(im)
                               : op.summed == OWN_AND_BYTES ? summed_firing<OWN_AND_BYTES>(im)
                                                            : summed_firing<BYTES_AND_OWN>(im);
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
        store(real, written_sum(im, op, sums[p], place, block.channel));
        store(real + 8, written_sum(im, op, sums[p] + 8, place, block.channel + 8));
        float* to = im.external(op.external) + place.y * op.axes[0] + place.x * op.axes[1];
        for (int i = 0; i < block.count; ++i) to[(block.channel + i) * op.axes[2]] = real[i];
    }
}

}  // namespace
