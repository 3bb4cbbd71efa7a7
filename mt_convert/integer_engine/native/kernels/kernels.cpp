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
// Files: structures.h (shared with layout.py), lanes.h, dot_products.h, neurons.h, layers.h,
// moves.h; here: time steps, images and threads.

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <iterator>

#include "layers.h"
#include "moves.h"

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

// One op, or this thread's share of it: some of the rows, or of the channels of a single row.
void run_op(const Image& im, const Op& op) {
    Span span = {0, op.rows, 0, op.n_blocks};
    if (im.threads > 1) {
        const bool by_rows = op.rows >= im.threads || op.n_blocks == 0;
        int& from = by_rows ? span.y0 : span.b0;
        int& to = by_rows ? span.y1 : span.b1;
        const int unit = !by_rows && op.kind == DEPTHWISE ? depthwise_blocks : 1;
        const int64_t all = (to + unit - 1) / unit;
        const int end = to;
        from = std::min(end, int(all * im.thread / im.threads) * unit);
        to = std::min(end, int(all * (im.thread + 1) / im.threads) * unit);
    }
    if (span.y0 < span.y1) im.skip ? run_moving_rows(im, op, span) : run_rows(im, op, span);
}

void run_timed(const Image& im, const Op& op, int64_t& nanoseconds) {
    const auto begun = std::chrono::steady_clock::now();
    run_op(im, op);
    const auto took = std::chrono::steady_clock::now() - begun;
    if (im.thread == 0)
        nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(took).count();
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
            call.times ? run_timed(im, ops[i], call.times[i]) : run_op(im, ops[i]);
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
