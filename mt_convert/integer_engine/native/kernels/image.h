// One image on its way through the ops, and what of it one op has to do.

#pragma once

#include "structures.h"

namespace {

struct Image {  // one image on its way through the ops
    const Call& call;
    u8* arena;
    int64_t index;
    int threads;  // that share it
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
    int64_t out;   // entries of the output before it
};

inline Place place_of(const Image& im, const Op& op, int y, int x) {
    const int64_t flat = int64_t(y) * op.columns + x;
    if (op.out < 0) return {y, x, flat, 0};
    const Value& out = im.call.values[op.out];
    return {y, x, flat, int64_t(y) * out.row + int64_t(x) * out.pixel};
}

struct Span {  // rows and blocks of channels to do
    int y0, y1, b0, b1;
};

}  // namespace
