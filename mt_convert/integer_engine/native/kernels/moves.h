// What moves numbers or pools them: images in, logits out, slices, windows.

#pragma once

#include <algorithm>

#include "image.h"
#include "lanes.h"

namespace {

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

// Some pixels of a row of one channel as whole numbers, images divided by their scale.
inline void whole_numbers(const Op& op, const float* row, int n, int low, int32_t* whole) {
    float ratio[64] = {};
    if (op.axes[1] == 1) std::memcpy(ratio, row, size_t(n) * sizeof(float));
    else for (int i = 0; i < n; ++i) ratio[i] = row[i * op.axes[1]];
    if (op.scale != 0) {  // |levels| stay far below 2^22
        for (int i = 0; i < 64; ++i) ratio[i] = ratio[i] / op.scale;
        for (int i = 0; i < 64; i += 8)
            store(ratio + i, rounded(clamp(load(ratio + i), all(op.low), all(op.high))));
    }
    for (int i = 0; i < 64; ++i) whole[i] = int32_t(ratio[i]) - low;
}

// Floats from outside as whole numbers: pixels of up to four bytes are written as one number.
void load_rows(const Image& im, const Op& op, const Span& span) {
    const Value out = im.call.values[op.out];
    const int pixel = out.pixel;
    const float* from = im.external(op.external);
    const bool as_quads = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ && out.kind == BYTES && pixel == 4;
    for (int y = span.y0; y < span.y1; ++y) {
        for (int x0 = 0; x0 < op.columns; x0 += 64) {
            const int n = std::min(64, op.columns - x0);
            uint32_t quads[64] = {};
            for (int c = 0; c < out.channels; ++c) {
                int32_t whole[64];
                const float* row = from + y * op.axes[0] + c * op.axes[2] + x0 * op.axes[1];
                whole_numbers(op, row, n, out.low, whole);
                if (as_quads) {
                    for (int i = 0; i < 64; ++i) quads[i] |= uint32_t(u8(whole[i])) << (8 * c);
                } else if (out.kind == BYTES) {
                    u8* to = im.bytes(out, y, x0) + c;
                    for (int i = 0; i < n; ++i, to += pixel) *to = u8(whole[i]);
                } else {
                    int32_t* to = im.ints(out, y, x0) + c;
                    for (int i = 0; i < n; ++i, to += pixel) *to = whole[i];
                }
            }
            if (as_quads) std::memcpy(im.bytes(out, y, x0), quads, size_t(n) * 4);
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

}  // namespace
