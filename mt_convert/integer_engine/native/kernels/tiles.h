// Sums of products by AMX: tiles of up to 16 pixels times blocks of 16 output channels. A tile of
// bytes is read where it lies, the pixels a constant distance apart; weights lie as for `dots`, each
// piece filled up with zeros to whole tiles.

#pragma once

#include <cstring>

#include "structures.h"

#if defined(__AMX_INT8__) || defined(MT_EMULATE_AMX)
#define MT_TILES

namespace {

struct TileShapes {  // as the instruction reads them: columns in bytes, of eight tiles
    u8 palette = 1, first_row = 0, unused[14] = {};
    uint16_t columns[16] = {};
    u8 rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64);

#if defined(MT_EMULATE_AMX)  // the instructions used, spelled out: a test of everything else
thread_local TileShapes tile_shapes;
thread_local u8 tile_bytes[8][16][64];

inline void set_tiles(const TileShapes& shapes) { tile_shapes = shapes; }
inline TileShapes tiles_set() { return tile_shapes; }
template <int T>
void tile_load(const void* from, int64_t apart) {
    std::memset(tile_bytes[T], 0, sizeof tile_bytes[T]);
    for (int r = 0; r < tile_shapes.rows[T]; ++r)
        std::memcpy(tile_bytes[T][r], (const u8*)from + r * apart, tile_shapes.columns[T]);
}
template <int T>
void tile_store(void* to, int64_t apart) {
    for (int r = 0; r < tile_shapes.rows[T]; ++r)
        std::memcpy((u8*)to + r * apart, tile_bytes[T][r], tile_shapes.columns[T]);
}
template <int C, int A, int B>
void tile_dot() {
    for (int m = 0; m < tile_shapes.rows[C]; ++m) {
        int32_t sums[16];
        std::memcpy(sums, tile_bytes[C][m], sizeof sums);
        for (int q = 0; q < tile_shapes.rows[B]; ++q) {
            const u8* bytes = tile_bytes[A][m] + 4 * q;
            const int8_t* weights = (const int8_t*)tile_bytes[B][q];
            for (int n = 0; n < 16; ++n)
                for (int i = 0; i < 4; ++i) sums[n] += int32_t(bytes[i]) * weights[4 * n + i];
        }
        std::memcpy(tile_bytes[C][m], sums, sizeof sums);
    }
}
#else
inline void set_tiles(const TileShapes& shapes) {
    if (shapes.palette) asm volatile("ldtilecfg %0" ::"m"(shapes));
    else asm volatile("tilerelease");
}
inline TileShapes tiles_set() {
    TileShapes shapes;
    asm volatile("sttilecfg %0" : "=m"(shapes));
    return shapes;
}
template <int T>
void tile_load(const void* from, int64_t apart) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(apart), "i"(T) : "memory");
}
template <int T>
void tile_store(void* to, int64_t apart) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(apart), "i"(T) : "memory");
}
template <int C, int A, int B>
void tile_dot() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
#endif

// Tiles 0 to 3 hold sums, 4 and 5 pixels, 6 and 7 weights; what was set before is set again in the
// end, for whoever else uses tiles in this thread.
class TileSetting {
   public:
    TileSetting(int pixels, int quads) : before(tiles_set()) {
        TileShapes shapes;
        for (int t = 0; t < 8; ++t) {
            shapes.rows[t] = u8(t < 6 ? pixels : quads);
            shapes.columns[t] = uint16_t(t == 4 || t == 5 ? 4 * quads : 64);
        }
        set_tiles(shapes);
    }
    ~TileSetting() { set_tiles(before); }
    TileSetting(const TileSetting&) = delete;
    TileSetting& operator=(const TileSetting&) = delete;

   private:
    TileShapes before;
};

constexpr int tile_pixels = 16;

// P tiles of pixels, each from its own place on, and G blocks of channels; the sums of a block lie
// ``apart`` rows behind those of the one before. At most four tiles of sums.
template <int P, int G>
void tile_dots(const u8* const* pixels, int64_t right, const Op& op, const Block& block,
               const int8_t* weights, int64_t stride, int32_t (*sums)[16], int apart) {
    static_assert(P * G <= 4 && (P <= 2 || G == 1));
    const int32_t* correction = op.correction + block.channel;
    tile_load<0>(correction, 0);  // for each pixel the same
    if constexpr (P > 1) tile_load<1>(correction, 0);
    if constexpr (P > 2) tile_load<2>(correction, 0);
    if constexpr (P > 3) tile_load<3>(correction, 0);
    if constexpr (G > 1) tile_load<2>(correction + 16, 0);
    if constexpr (G > 1 && P > 1) tile_load<3>(correction + 16, 0);
    for (int i = 0; i < op.n_pieces; ++i) {
        int64_t at = block.offset + op.pieces[i].offset;
        for (int q = 0; q < op.pieces[i].quads; q += op.depth) {
            tile_load<6>(weights, 64);
            if constexpr (G > 1) tile_load<7>(weights + stride, 64);
            tile_load<4>(pixels[0] + at, right);
            tile_dot<0, 4, 6>();
            if constexpr (G > 1) tile_dot<2, 4, 7>();
            if constexpr (P > 1) {
                tile_load<5>(pixels[1] + at, right);
                tile_dot<1, 5, 6>();
                if constexpr (G > 1) tile_dot<3, 5, 7>();
            }
            if constexpr (P > 2) {
                tile_load<4>(pixels[2] + at, right);
                tile_dot<2, 4, 6>();
            }
            if constexpr (P > 3) {
                tile_load<5>(pixels[3] + at, right);
                tile_dot<3, 5, 6>();
            }
            at += 4 * op.depth;
            weights += 64 * op.depth;
        }
    }
    tile_store<0>(sums, 64);
    if constexpr (P > 1) tile_store<1>(sums + tile_pixels, 64);
    if constexpr (P > 2) tile_store<2>(sums + 2 * tile_pixels, 64);
    if constexpr (P > 3) tile_store<3>(sums + 3 * tile_pixels, 64);
    if constexpr (G > 1) tile_store<2>(sums + apart, 64);
    if constexpr (G > 1 && P > 1) tile_store<3>(sums + apart + tile_pixels, 64);
}

using TileDots = void (*)(const u8* const*, int64_t, const Op&, const Block&, const int8_t*,
                          int64_t, int32_t (*)[16], int);

constexpr int most_tiles(int blocks) { return blocks == 1 ? 4 : 2; }  // of pixels

// The kernel for one, two or `most_tiles` tiles and one or two blocks.
inline TileDots tile_kernel(int tiles, int blocks) {
    if (blocks == 2) return tiles == 2 ? tile_dots<2, 2> : tile_dots<1, 2>;
    return tiles == 4 ? tile_dots<4, 1> : tiles == 2 ? tile_dots<2, 1> : tile_dots<1, 1>;
}

}  // namespace
#endif
