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
// Files: structures.h (shared with layout.py), image.h, lanes.h, dot_products.h, neurons.h, layers.h,
// moves.h, threads.h; here: time steps, images and their parts.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "layers.h"
#include "moves.h"
#include "threads.h"

namespace {

void run_rows(const Image& im, const Op& op, const Span& span) {
    switch (op.kind) {
        case LOAD: return load_rows(im, op, span);
        case STORE: return store_rows(im, op, span);
        case DOT: return dot_layer(im, op, span);
        case DEPTHWISE: return depthwise_layer(im, op, span);
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

constexpr int parts_each = 4;  // of an op, for each thread: whoever is late does fewer

// How long an op takes, about, in products of four bytes with 16 channels.
int64_t work_of(const Call& call, const Op& op) {
    const int moved = op.out < 0 ? op.in : op.out;
    const int blocks = op.n_blocks ? op.n_blocks : (call.values[moved].channels + 15) / 16;
    int64_t each = 8;  // to fire, to move
    if (op.kind == DOT || op.kind == DEPTHWISE)
        for (int i = 0; i < op.n_pieces; ++i) each += op.pieces[i].quads;
    if (op.kind == WIDE) each += call.values[op.in].channels;
    if (op.kind == MAX_POOL || op.kind == SUM_POOL) each += op.kernel[0] * op.kernel[1];
    return each * blocks * op.rows * op.columns;
}

// How an op is shared out: by rows, or by channels of a few rows; ``unit`` of them stay together.
struct Shares {
    bool by_rows;
    int unit, end, units, parts;
};

// Parts that are worth handing over, which takes microseconds.
Shares shares_of(const Call& call, const Op& op, int threads) {
    const bool by_rows = op.rows >= threads || op.n_blocks == 0;
    const int unit = !by_rows && op.kind == DEPTHWISE ? depthwise_blocks : 1;
    const int end = by_rows ? op.rows : op.n_blocks, units = (end + unit - 1) / unit;
    const int64_t worth = threads == 1 ? 1 : work_of(call, op) / call.least_work;
    const int most = std::min(units, parts_each * threads);
    return {by_rows, unit, end, units, int(std::clamp<int64_t>(worth, 1, std::max(1, most)))};
}

// One op, shared out where the pool is ours.
void run_op(const Image& im, const Op& op) {
    const auto run = [&](const Span& span) {
        im.skip ? run_moving_rows(im, op, span) : run_rows(im, op, span);
    };
    const Shares shares = shares_of(im.call, op, im.threads);
    if (shares.parts == 1) return run({0, op.rows, 0, op.n_blocks});
    Pool::shared().run(shares.parts, [&](int part, int) {
        const auto [by_rows, unit, end, units, parts] = shares;
        const int from = int(int64_t(units) * part / parts) * unit;
        const int to = std::min(end, int(int64_t(units) * (part + 1) / parts) * unit);
        run(by_rows ? Span{from, to, 0, op.n_blocks} : Span{0, op.rows, from, to});
    });
}

void run_timed(const Image& im, const Op& op, int64_t& nanoseconds) {
    const auto begun = std::chrono::steady_clock::now();
    run_op(im, op);
    const auto took = std::chrono::steady_clock::now() - begun;
    nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(took).count();
}

// All steps of one image. At rest, what the step said holds for all that would follow.
void run_image(Image im) {
    const Call& call = im.call;
    u8* marks = im.arena + call.marks;
    if (im.skip) std::memset(marks, 0, size_t(call.n_marks));
    for (im.t = call.first_step; im.t < call.end_step; ++im.t) {
        im.first = im.t == 0;
        u8* moving = marks + call.n_marks - 3;
        if (im.skip) moving[(im.t + 1) % 3] = 0;
        const Op* ops = call.steps[im.t - call.first_step];
        for (int i = 0; i < call.n_ops; ++i)
            call.times ? run_timed(im, ops[i], call.times[i]) : run_op(im, ops[i]);
        if (!im.skip || moving[im.t % 3]) continue;
        for (int i = 0; i < call.n_externals; ++i) {
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
}

}  // namespace

extern "C" {

// Sizes of the structures, for build.py to compare with its own.
void mt_sizes(int64_t* sizes) {
    const int64_t all[] = {sizeof(Value), sizeof(Dependence), sizeof(Piece), sizeof(Block),
                           sizeof(Term),  sizeof(Thresholds), sizeof(Op),    sizeof(External),
                           sizeof(Call)};
    std::copy(std::begin(all), std::end(all), sizes);
}

// In how many parts so many threads share out an op.
int32_t mt_parts(const Call* call, const Op* op, int32_t threads) {
    return shares_of(*call, *op, threads).parts;
}

// Fills a new arena with the number 0: the borders stay as they are from then on.
void mt_prepare(const Value* values, int32_t n_values, u8* arena) {
    for (int i = 0; i < n_values; ++i) {
        const int zero = values[i].kind == BYTES ? -values[i].low : 0;
        std::memset(arena + values[i].start, zero, size_t(values[i].bytes));
    }
}

// Threads share out images, or parts of each image where these are few. Where another caller has the
// pool, or for timing, the caller does all of it.
void mt_run(const Call* call) {
    const int64_t batch = call->batch;
    const bool in_turns = batch < call->threads || call->times;
    const bool shared = call->threads > 1 && Pool::shared().take(call->threads, in_turns);
    const int threads = shared ? call->threads : 1;
    const auto image = [&](int64_t index, int64_t arena, int sharing) {
        u8* start = call->arena + (call->keep_images ? index : arena) * call->arena_bytes;
        run_image({*call, start, index, sharing, 0, true, call->skip != 0});
    };
    if (shared && !in_turns) {
        const int64_t parts = std::min<int64_t>(batch, Pool::most_parts);
        Pool::shared().run(int(parts), [&](int part, int thread) {
            for (int64_t i = batch * part / parts; i < batch * (part + 1) / parts; ++i)
                image(i, thread, 1);
        });
    } else {
        for (int64_t i = 0; i < batch; ++i) image(i, 0, threads);
    }
    if (shared) Pool::shared().give_back(in_turns);
}
}
