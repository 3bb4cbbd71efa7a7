// One convolution by its events alone: each number that changed adds its weights to the sums it
// reaches. Changes count as +1 or -1, whatever they are, so that no product is needed: no event-driven
// kernel with these sums does less.

#include <cstdint>

extern "C" void events(const int32_t* places, const int32_t* signs, int64_t count,
                       const int32_t* weights, int32_t* sums, int height, int width, int channels,
                       int kernel, int stride, int padding, int depthwise) {
    // places: y, x, input channel; weights: [input][ky][kx][output]; sums: [y][x][output]
    for (int64_t event = 0; event < count; ++event) {
        const int y = places[3 * event], x = places[3 * event + 1], c = places[3 * event + 2];
        for (int ky = 0; ky < kernel; ++ky) {
            const int down = y + padding - ky;
            if (down < 0 || down % stride || down / stride >= height) continue;
            for (int kx = 0; kx < kernel; ++kx) {
                const int right = x + padding - kx;
                if (right < 0 || right % stride || right / stride >= width) continue;
                int32_t* sum = sums + (int64_t(down / stride) * width + right / stride) * channels;
                const int32_t* weight = weights + int64_t((c * kernel + ky) * kernel + kx) *
                                                      (depthwise ? 1 : channels);
                if (depthwise) {
                    sum[c] += signs[event] * weight[0];
                } else if (signs[event] > 0) {
                    for (int k = 0; k < channels; ++k) sum[k] += weight[k];
                } else {
                    for (int k = 0; k < channels; ++k) sum[k] -= weight[k];
                }
            }
        }
    }
}
