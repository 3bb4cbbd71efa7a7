// Convolutions and linear layers over the bytes, or whole numbers, of one image.

#pragma once

#include <algorithm>

#include "dot_products.h"
#include "neurons.h"

namespace {

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

}  // namespace
