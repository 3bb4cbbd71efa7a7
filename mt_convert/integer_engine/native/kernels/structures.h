// What Python and the kernels share; layout.py has the same structures in the same order.

#pragma once

#include <cstdint>

using u8 = uint8_t;

enum ValueKind : int32_t { BYTES = 0, INTS = 1 };
enum OpKind : int32_t { LOAD, STORE, DOT, DEPTHWISE, WIDE, NONE, MAX_POOL, SUM_POOL, COPY, FLATTEN };
enum Finish : int32_t { KEEP, FIRE, READ_OUT };
enum Summed : int32_t { OTHERWISE, OWN, OWN_AND_BYTES, BYTES_AND_OWN };  // by channel
enum Sums : int32_t { SHORT, WHOLE, INT16_WEIGHTS, TILES };  // which kernel for dot products

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

struct Thresholds {  // of a function: one row for all channels, or one for each; `functions.h`
    const float *thresholds, *weights, *start, *levels;
    int32_t count, width, rows, searched;
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
    int32_t summed;  // FIRE: a sum that neurons in int16 know
    int32_t depth;   // TILES: quads of a tile
    const Thresholds* thresholds;  // FIRE: of a function; may be null
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
    int64_t least_work;      // of a part of an op, to be handed to another thread
    int32_t n_values, n_ops, n_last_ops, n_externals;
    int32_t batch, first_step, end_step, threads;
    int32_t keep_images;  // each image has an arena of its own, kept between calls
    int32_t skip;         // the ops of all steps are the same: rows at rest need not run again
    int64_t* times;       // nanoseconds of each op, added up by one thread; may be null
};
}
