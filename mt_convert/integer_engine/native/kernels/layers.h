// Convolutions and linear layers over the bytes, or whole numbers, of one image.

#pragma once

#include <algorithm>

#include "dot_products.h"
#include "neurons.h"
#include "tiles.h"

namespace {

inline const u8* input_at(const Image& im, const Op& op, int y, int x) {
    const Value& in = im.call.values[op.in];
    return im.bytes(in, y * op.stride[0] - op.padding[0], x * op.stride[1] - op.padding[1]);
}

// How many blocks from ``b`` on read the same input, and may be done at once.
inline int blocks_at_once(const Op& op, int b, int end) {
    if (op.sums != WHOLE && op.sums != TILES) return 1;
    int groups = 1;
    while (groups < most_groups && b + groups < end &&
           op.blocks[b + groups].offset == op.blocks[b].offset)
        ++groups;
    return groups;
}

// Bytes of the weights of a block of channels.
inline int64_t weight_bytes(const Op& op) {
    int64_t quads = 0;
    for (int i = 0; i < op.n_pieces; ++i) quads += op.pieces[i].quads;
    return quads * (op.sums == INT16_WEIGHTS ? 128 : 64);
}

#if defined(MT_TILES)
// How tiles go over a layer's pixels: along lines of pixels equally far apart, which are rows, or
// all rows with the borders between them where that takes fewer tiles.
struct Lines {
    int64_t right;  // from one pixel to the next, in bytes
    int wide;       // pixels from one row to the next, if lines are `through` borders
    int pixels;     // of all rows, or of one
    bool through;

    Lines(const Op& op, const Value& in) : right(int64_t(op.stride[1]) * in.pixel) {
        const int64_t down = int64_t(op.stride[0]) * in.row;
        wide = int(down / right);
        const int all = (op.rows - 1) * wide + op.columns, row = op.columns;
        through = down % right == 0 && tiles(all) <= op.rows * tiles(row);
        pixels = through ? all : row;
    }
    static int tiles(int pixels) { return (pixels + tile_pixels - 1) / tile_pixels; }
};

// What `dot_layer` does, by tiles. A line's last tile begins earlier where pixels would be missing.
void tile_layer(const Image& im, const Op& op, const Span& span) {
    const Value& in = im.call.values[op.in];
    const Lines lines(op, in);
    const int tall = std::min(tile_pixels, lines.pixels);
    const TileSetting setting(tall, op.depth);
    const int64_t stride = weight_bytes(op), down = int64_t(op.stride[0]) * in.row;
    const u8* start = input_at(im, op, 0, 0);
    const int out_pixel = op.out < 0 ? 0 : im.call.values[op.out].pixel;
    alignas(64) int32_t sums[8 * tile_pixels][16];  // of four tiles, or of two and four blocks
    Place place[4 * tile_pixels];
    const auto run_line = [&](int b, int groups, int y0, int y1) {
        const Block* block = op.blocks + b;
        const int8_t* weights = op.weights + b * stride;
        const int most = most_tiles(groups), apart = most * tile_pixels;
        const int end = (y1 - y0 - 1) * lines.wide + op.columns;
        const int last = lines.pixels - tall - (lines.through ? y0 * lines.wide : 0);
        Place next = place_of(im, op, y0, 0);
        for (int v = 0, x = 0, tiles; v < end; v += tiles * tall) {
            const int left = (end - v + tall - 1) / tall;
            tiles = left >= most ? most : std::min(left, 2);
            const u8* at[4];
            for (int p = 0; p < tiles; ++p)
                at[p] = start + y0 * down + std::min(v + p * tall, last) * lines.right;
            for (int g = 0; g < groups; g += 2)
                tile_kernel(tiles, std::min(2, groups - g))(at, lines.right, op, block[g],
                                                            weights + g * stride, stride,
                                                            sums + g * apart, apart);
            int n = 0, first = 0;  // pixels whose sums lie one behind the other
            const auto fire = [&] {
                if (n) finish_blocks(im, op, block, groups, sums + first, apart, place, n);
                n = 0;
            };
            for (int p = 0; p < tiles; ++p) {
                const int from = v + p * tall, shift = from - std::min(from, last);
                for (int i = 0; i < tall && from + i < end; ++i, ++x) {
                    if (x == lines.wide) x = 0, next = place_of(im, op, next.y + 1, 0);
                    if (x >= op.columns) continue;
                    const int row = p * tile_pixels + shift + i;
                    if (row != first + n) fire();
                    if (!n) first = row;
                    place[n++] = next;
                    ++next.x, ++next.flat, next.out += out_pixel;
                }
            }
            fire();
        }
    };
    for (int y0 = span.y0; y0 < span.y1; y0 += op.tile) {
        const int y1 = std::min(span.y1, y0 + op.tile), tall_line = lines.through ? y1 - y0 : 1;
        for (int b = span.b0, groups; b < span.b1; b += groups) {
            groups = blocks_at_once(op, b, span.b1);
            for (int y = y0; y < y1; y += tall_line) run_line(b, groups, y, y + tall_line);
        }
    }
}
#endif

// Convolutions and linear layers: some rows at a time, whose input stays in the L1 cache, block of
// channels by block, as many pixels at once as registers hold.
void dot_layer(const Image& im, const Op& op, const Span& span) {
#if defined(MT_TILES)
    if (op.sums == TILES) return tile_layer(im, op, span);
#endif
    const int64_t stride = weight_bytes(op);
    const Value& in = im.call.values[op.in];
    const int64_t right = int64_t(op.stride[1]) * in.pixel, down = int64_t(op.stride[0]) * in.row;
    const u8* start = input_at(im, op, 0, 0);
    const int columns = op.columns, out_pixel = op.out < 0 ? 0 : im.call.values[op.out].pixel;
    const bool by_rows = three_in_a_row(op, in) && columns >= 4;
    alignas(64) int32_t sums[most_groups * pixels_in_turn][16];
    const u8* pixel[pixels_in_turn + Lanes::most] = {};
    Place place[pixels_in_turn];
    for (int y0 = span.y0; y0 < span.y1; y0 += op.tile) {
        const int y1 = std::min(span.y1, y0 + op.tile), count = (y1 - y0) * columns;
        for (int b = span.b0, groups; b < span.b1; b += groups) {
            groups = blocks_at_once(op, b, span.b1);
            const Block* block = op.blocks + b;
            const int8_t* weights = op.weights + b * stride;
            const auto fire_all = [&](const int32_t(*first)[16], int n) {
                finish_blocks(im, op, block, groups, first, pixels_in_turn, place, n);
            };
            if (groups <= 2 && by_rows) {
                for (int y = y0; y < y1; ++y)
                    for (int x = 0; x < columns;) {
                        const RowKernel kernel = row_kernel_for(columns - x, columns, groups);
                        const int from = std::min(x, columns - kernel.pixels);
                        const int n = std::min(kernel.pixels, columns - x);
                        for (int p = 0; p < n; ++p) place[p] = place_of(im, op, y, x + p);
                        kernel.run(start + y * down + from * right, right, op, *block, weights,
                                   stride, sums);
                        fire_all(sums + x - from, n);
                        x += n;
                    }
                continue;
            }
            const int most = pixels_at_once(op.sums, groups);
            Place next = place_of(im, op, y0, 0);
            for (int i = 0; i < count; i += pixels_in_turn) {
                const int n = std::min(pixels_in_turn, count - i);
                for (int p = 0; p < n; ++p) {
                    place[p] = next;
                    pixel[p] = start + next.y * down + next.x * right;
                    ++next.x, ++next.flat, next.out += out_pixel;
                    if (next.x == columns) next = place_of(im, op, next.y + 1, 0);
                }
                for (int p = n; p < n + Lanes::most; ++p) pixel[p] = pixel[n - 1];
                for (int p = 0; p < n; p += most) {
                    const Kernel kernel = kernel_for(std::min(most, n - p), op.sums, groups);
                    kernel.run(pixel + p, op, *block, weights, stride, sums + p);
                }
                fire_all(sums, n);
            }
        }
    }
}

#if !defined(__AVX512VNNI__) && !defined(MT_EMULATE_VNNI)
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
#endif

// Convolutions whose channels each have weights of their own: pixels of a row, 16 channels after
// 16, or 64 after 64.
void depthwise_layer(const Image& im, const Op& op, const Span& span) {
    constexpr int most = 16;
    alignas(64) int32_t sums[most * depthwise_blocks][16];
    Place place[most];
#if defined(__AVX512VNNI__) || defined(MT_EMULATE_VNNI)
    const bool pairs = three_by_one(op);
    const int64_t group = pairs ? op.n_pieces / 3 * 512 : (op.n_pieces + 3) / 4 * 256;
    const int64_t right = im.call.values[op.in].pixel;
#endif
    for (int y = span.y0; y < span.y1; ++y) {
        for (int b = span.b0; b < span.b1; b += depthwise_blocks) {
            const Block* block = op.blocks + b;
            for (int x0 = 0; x0 < op.columns; x0 += most) {
                const int n = std::min(most, op.columns - x0);
                for (int p = 0; p < n; ++p)
                    place[p] = place_of(im, op, y, x0 + p);
#if defined(__AVX512VNNI__) || defined(MT_EMULATE_VNNI)
                const int8_t* weights = op.weights + b / 4 * group;
                for (int p = 0; p < n; p += 1 + pairs) {
                    const u8* pixel = input_at(im, op, y, x0 + p);
                    pairs ? depthwise_pair(pixel, right, op, *block, weights, most, sums + p)
                          : depthwise_pixel(pixel, op, *block, weights, most, sums + p);
                }
                const int blocks = std::min(4, span.b1 - b);
                finish_blocks(im, op, block, blocks, sums, most, place, n);
#else
                const int8_t* weights = op.weights + int64_t(b) * op.n_pieces * 16;
                for (int p = 0; p < n; ++p)
                    depthwise(input_at(im, op, y, x0 + p), op, *block, weights, sums[p]);
                finish(im, op, *block, sums, place, n);
#endif
            }
        }
    }
}

// 16 sums of one pixel over int32 numbers: a linear layer, or a convolution of size 1. Weights lie in
// pairs of inputs.
inline void wide_linear(const int32_t* pixel, int channels, const int8_t* w, int32_t* sums) {
    int32_t sum[16] = {};
    for (int k = 0; k < channels; k += 2, w += 32) {
        const int32_t first = pixel[k], second = k + 1 < channels ? pixel[k + 1] : 0;
        for (int c = 0; c < 16; ++c) sum[c] += first * w[2 * c] + second * w[2 * c + 1];
    }
    std::memcpy(sums, sum, sizeof sum);
}

#if defined(__AVX2__)
// The same where all numbers fit int16.
inline void wide_linear_short(const int32_t* pixel, int channels, const int8_t* w, int32_t* sums) {
    Ints sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int k = 0; k < channels; k += 2, w += 32) {
        const uint32_t first = uint32_t(pixel[k]) & 0xffff;
        const uint32_t second = k + 1 < channels ? uint32_t(pixel[k + 1]) << 16 : 0;
        const __m256i pair = _mm256_set1_epi32(int32_t(first | second));
        for (int h = 0; h < 2; ++h) {
            const __m256i by =
                _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(w + 16 * h)));
            sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(pair, by));
        }
    }
    store(sums, sum[0]);
    store(sums + 8, sum[1]);
}
#endif

void other_layer(const Image& im, const Op& op, const Span& span) {
    alignas(64) int32_t sums[1][16] = {};
    for (int y = span.y0; y < span.y1; ++y) {
        for (int x = 0; x < op.columns; ++x) {
            const Place place = place_of(im, op, y, x);
            for (int b = span.b0; b < span.b1; ++b) {
                const Block& block = op.blocks[b];
                if (op.kind == WIDE) {
                    const Value& in = im.call.values[op.in];
                    const int8_t* weights = op.weights + int64_t(b) * ((in.channels + 1) / 2) * 32;
#if defined(__AVX2__)
                    const auto run = op.sums == SHORT ? wide_linear_short : wide_linear;
#else
                    const auto run = wide_linear;
#endif
                    run(im.ints(in, y, x), in.channels, weights, sums[0]);
                }
                finish(im, op, block, sums, &place, 1);
            }
        }
    }
}

}  // namespace
