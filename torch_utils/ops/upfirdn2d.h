// Pad, upsample, filter and downsample: the index arithmetic, and what one thread does with it.
//
// Plain C++ as well as CUDA, so that a test can run every line on a CPU (test_ops_kernels.py); upfirdn2d.cu wraps it
// in kernels, upfirdn2d.cpp in an operator. upfirdn2d.py is the specification.
//
// Along one axis, with zeros inserted after each input and `pad` zeros before the first,
//     y[o] = sum over j of kernel[j] * upsampled[o * down - pad + j],   upsampled[i * up] = x[i], 0 elsewhere.
// An output is called aligned if o * down - pad is a multiple of `up`: an input lies under its first tap. Counted from an
// aligned output and from the input under it, which tap meets which input is known at compile time.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace mimic3d {

struct UpfirdnParams {
    const void* x;       // [batch, channels, in_height, in_width], any strides
    const void* filter;  // [filter_height, filter_width], contiguous, in the arithmetic's type
    void* y;             // [batch, channels, out_height, out_width], contiguous or channels-last
    int64_t x_stride[4], y_stride[4];
    int batch, channels, in_height, in_width, out_height, out_width, filter_height, filter_width;
    int up_x, up_y, down_x, down_y;
    int pad_left, pad_top;
    bool flip_filter;    // correlate
    bool channels_last;  // of y
    double gain;
};

MIMIC3D_HOST_DEVICE int divide_up(int a, int b) { return (a + b - 1) / b; }  // of a >= 0

template <typename S> MIMIC3D_HOST_DEVICE S filter_tap(const UpfirdnParams& p, int row, int column) {
    if (!p.flip_filter) {
        row = p.filter_height - 1 - row;
        column = p.filter_width - 1 - column;
    }
    return static_cast<const S*>(p.filter)[row * p.filter_width + column];
}

template <typename T, typename S = typename Arithmetic<T>::type>
MIMIC3D_HOST_DEVICE S read_input(const UpfirdnParams& p, const T* plane, int row, int column) {
    if (row < 0 || row >= p.in_height || column < 0 || column >= p.in_width) return S(0);
    return static_cast<S>(plane[row * p.x_stride[2] + column * p.x_stride[3]]);
}

template <typename T> MIMIC3D_HOST_DEVICE const T* input_plane(const UpfirdnParams& p, int sample, int channel) {
    return static_cast<const T*>(p.x) + sample * p.x_stride[0] + channel * p.x_stride[1];
}

template <typename T> MIMIC3D_HOST_DEVICE T* output_plane(const UpfirdnParams& p, int sample, int channel) {
    return static_cast<T*>(p.y) + sample * p.y_stride[0] + channel * p.y_stride[1];
}

// ---- Any factors and any filter: one output

// The inputs [first, last] along one axis that the filter sees from an output.
struct Reach {
    int first, last;
};

MIMIC3D_HOST_DEVICE Reach reach(int base, int taps, int up, int size) {
    const int end = base + taps - 1;  // the last tap's place
    const int last = end < 0 ? -1 : end / up;
    return {base <= 0 ? 0 : (base + up - 1) / up, last < size ? last : size - 1};
}

// Splits a running number: returns its position among `size` things, and leaves the number of whole rounds in `index`.
// Index: uint32_t where that is enough, because 64-bit divisions are slow.
template <typename Index> MIMIC3D_HOST_DEVICE int take(Index& index, int size) {
    const int part = static_cast<int>(index % static_cast<Index>(size));
    index /= static_cast<Index>(size);
    return part;
}

template <typename T, typename Index> MIMIC3D_HOST_DEVICE void upfirdn_output(const UpfirdnParams& p, Index index) {
    using S = typename Arithmetic<T>::type;
    // Neighbouring indices are neighbours in memory.
    int channel = p.channels_last ? take(index, p.channels) : 0;
    const int column = take(index, p.out_width), row = take(index, p.out_height);
    if (!p.channels_last) channel = take(index, p.channels);
    const int sample = static_cast<int>(index);
    const int base_x = column * p.down_x - p.pad_left, base_y = row * p.down_y - p.pad_top;
    const Reach rows = reach(base_y, p.filter_height, p.up_y, p.in_height);
    const Reach columns = reach(base_x, p.filter_width, p.up_x, p.in_width);
    const T* plane = input_plane<T>(p, sample, channel);
    S sum = S(0);
    for (int i = rows.first; i <= rows.last; i++)
        for (int j = columns.first; j <= columns.last; j++)
            sum += static_cast<S>(plane[i * p.x_stride[2] + j * p.x_stride[3]]) *
                   filter_tap<S>(p, i * p.up_y - base_y, j * p.up_x - base_x);
    output_plane<T>(p, sample, channel)[row * p.y_stride[2] + column * p.y_stride[3]] = static_cast<T>(sum * S(p.gain));
}

// ---- Factors of 1 and 2, small filters: a patch of outputs from a patch of inputs

// Factors, the largest filter, and the shape of a thread's patch, all in the order x, y.
template <int UP_X_, int UP_Y_, int DOWN_X_, int DOWN_Y_, int TAPS_X_, int TAPS_Y_> struct Resampling {
    static constexpr int UP_X = UP_X_, UP_Y = UP_Y_, DOWN_X = DOWN_X_, DOWN_Y = DOWN_Y_, TAPS_X = TAPS_X_, TAPS_Y = TAPS_Y_;
    // A patch begins and ends at aligned outputs; it is high because rows of inputs are used several times.
    static constexpr int PATCH_X = UP_X, PATCH_Y = DOWN_Y == 1 ? 8 : 4;
    static constexpr int REACH_X = ((PATCH_X - 1) * DOWN_X + TAPS_X - 1) / UP_X + 1;  // inputs that a patch sees
    static constexpr int REACH_Y = ((PATCH_Y - 1) * DOWN_Y + TAPS_Y - 1) / UP_Y + 1;
    static_assert(PATCH_X * DOWN_X % UP_X == 0 && PATCH_Y * DOWN_Y % UP_Y == 0, "the next patch must be aligned as well");

    static bool fits(const UpfirdnParams& p) {
        return p.up_x == UP_X && p.up_y == UP_Y && p.down_x == DOWN_X && p.down_y == DOWN_Y && p.filter_width <= TAPS_X &&
               p.filter_height <= TAPS_Y;
    }
};

// Outputs between the aligned output from which patches are counted and output 0.
MIMIC3D_HOST_DEVICE int lead(int pad, int up) { return (up - pad % up) % up; }

// The input under the first tap of aligned output `output`.
MIMIC3D_HOST_DEVICE int input_under(int output, int down, int pad, int up) { return (output * down - pad) / up; }

// The filter as it is applied, filled up with zeros.
template <typename R, typename S> struct Taps {
    S at[R::TAPS_Y][R::TAPS_X];

    MIMIC3D_HOST_DEVICE explicit Taps(const UpfirdnParams& p) {
        MIMIC3D_UNROLL
        for (int i = 0; i < R::TAPS_Y; i++)
            MIMIC3D_UNROLL
            for (int j = 0; j < R::TAPS_X; j++)
                at[i][j] = i < p.filter_height && j < p.filter_width ? filter_tap<S>(p, i, j) : S(0);
    }
};

// Computes a patch whose first output, (row, column), is aligned; read(i, j) gives the inputs, counted from the one under
// that output's first tap.
template <typename R, typename T, typename S, typename Read>
MIMIC3D_HOST_DEVICE void filter_patch(const UpfirdnParams& p, const Taps<R, S>& taps, T* plane, int row, int column, Read read) {
    S sum[R::PATCH_Y][R::PATCH_X] = {};
    MIMIC3D_UNROLL
    for (int i = 0; i < R::REACH_Y; i++)
        MIMIC3D_UNROLL
        for (int j = 0; j < R::REACH_X; j++) {
            const S value = read(i, j);
            MIMIC3D_UNROLL
            for (int y = 0; y < R::PATCH_Y; y++)
                MIMIC3D_UNROLL
                for (int x = 0; x < R::PATCH_X; x++) {
                    const int tap_y = i * R::UP_Y - y * R::DOWN_Y, tap_x = j * R::UP_X - x * R::DOWN_X;
                    if (tap_y >= 0 && tap_y < R::TAPS_Y && tap_x >= 0 && tap_x < R::TAPS_X)
                        sum[y][x] += value * taps.at[tap_y][tap_x];
                }
        }
    MIMIC3D_UNROLL
    for (int y = 0; y < R::PATCH_Y; y++)
        MIMIC3D_UNROLL
        for (int x = 0; x < R::PATCH_X; x++)
            if (row + y >= 0 && row + y < p.out_height && column + x >= 0 && column + x < p.out_width)
                plane[(row + y) * p.y_stride[2] + (column + x) * p.y_stride[3]] = static_cast<T>(sum[y][x] * S(p.gain));
}

// Contiguous y: a block computes a tile of one plane. Its threads first fetch the inputs that the tile sees into shared
// memory, then compute one patch (or more, side by side) each.
template <typename R> struct Tile {
    static constexpr int THREADS_X = 32, THREADS_Y = 8, THREADS = THREADS_X * THREADS_Y;
    static constexpr int PATCHES = R::UP_X == 1 && R::DOWN_X == 1 ? 2 : 1;  // of a thread
    static constexpr int WIDTH = THREADS_X * R::PATCH_X * PATCHES, HEIGHT = THREADS_Y * R::PATCH_Y;
    static constexpr int IN_WIDTH = ((WIDTH - 1) * R::DOWN_X + R::TAPS_X - 1) / R::UP_X + 1;
    static constexpr int IN_HEIGHT = ((HEIGHT - 1) * R::DOWN_Y + R::TAPS_Y - 1) / R::UP_Y + 1;

    int sample, channel;
    int row, column;  // the first output, aligned; may lie before output 0

    MIMIC3D_HOST_DEVICE static int across(const UpfirdnParams& p) {
        return divide_up(p.out_width + lead(p.pad_left, R::UP_X), WIDTH);
    }
    MIMIC3D_HOST_DEVICE static int down(const UpfirdnParams& p) {
        return divide_up(p.out_height + lead(p.pad_top, R::UP_Y), HEIGHT);
    }
    static int64_t count(const UpfirdnParams& p) {
        return static_cast<int64_t>(across(p)) * down(p) * p.channels * p.batch;
    }

    MIMIC3D_HOST_DEVICE Tile(const UpfirdnParams& p, uint32_t index) {
        column = take(index, across(p)) * WIDTH - lead(p.pad_left, R::UP_X);
        row = take(index, down(p)) * HEIGHT - lead(p.pad_top, R::UP_Y);
        channel = take(index, p.channels);
        sample = static_cast<int>(index);
    }

    template <typename T, typename S> MIMIC3D_HOST_DEVICE void fetch(const UpfirdnParams& p, int thread, S* shared) const {
        const T* plane = input_plane<T>(p, sample, channel);
        const int first_row = input_under(row, R::DOWN_Y, p.pad_top, R::UP_Y);
        const int first_column = input_under(column, R::DOWN_X, p.pad_left, R::UP_X);
        for (int i = thread; i < IN_HEIGHT * IN_WIDTH; i += THREADS)
            shared[i] = read_input<T>(p, plane, first_row + i / IN_WIDTH, first_column + i % IN_WIDTH);
    }

    template <typename T, typename S>
    MIMIC3D_HOST_DEVICE void compute(const UpfirdnParams& p, const Taps<R, S>& taps, int thread, const S* shared) const {
        const int y = thread / THREADS_X * R::PATCH_Y;
        MIMIC3D_UNROLL
        for (int patch = 0; patch < PATCHES; patch++) {
            const int x = (patch * THREADS_X + thread % THREADS_X) * R::PATCH_X;
            const S* seen = shared + y * R::DOWN_Y / R::UP_Y * IN_WIDTH + x * R::DOWN_X / R::UP_X;
            filter_patch<R>(p, taps, output_plane<T>(p, sample, channel), row + y, column + x,
                            [=](int i, int j) { return seen[i * IN_WIDTH + j]; });
        }
    }
};

// Channels-last y: a thread computes a patch of one channel, its neighbours that of the next channels; inputs that several
// threads see come from the cache.
template <typename R> MIMIC3D_HOST_DEVICE int patches_across(const UpfirdnParams& p) {
    return divide_up(p.out_width + lead(p.pad_left, R::UP_X), R::PATCH_X);
}
template <typename R> MIMIC3D_HOST_DEVICE int patches_down(const UpfirdnParams& p) {
    return divide_up(p.out_height + lead(p.pad_top, R::UP_Y), R::PATCH_Y);
}
template <typename R> int64_t channels_last_patches(const UpfirdnParams& p) {
    return static_cast<int64_t>(patches_across<R>(p)) * patches_down<R>(p) * p.channels * p.batch;
}

template <typename R, typename T, typename S>
MIMIC3D_HOST_DEVICE void channels_last_patch(const UpfirdnParams& p, const Taps<R, S>& taps, uint32_t index) {
    const int channel = take(index, p.channels);
    const int column = take(index, patches_across<R>(p)) * R::PATCH_X - lead(p.pad_left, R::UP_X);
    const int row = take(index, patches_down<R>(p)) * R::PATCH_Y - lead(p.pad_top, R::UP_Y);
    const int sample = static_cast<int>(index);
    const T* plane = input_plane<T>(p, sample, channel);
    const int first_row = input_under(row, R::DOWN_Y, p.pad_top, R::UP_Y);
    const int first_column = input_under(column, R::DOWN_X, p.pad_left, R::UP_X);
    filter_patch<R>(p, taps, output_plane<T>(p, sample, channel), row, column,
                    [&](int i, int j) { return read_input<T>(p, plane, first_row + i, first_column + j); });
}

// Calls run(resampling) with the case that fits and returns what it does; false where none fits.
template <typename Run> bool with_resampling(const UpfirdnParams& p, Run run) {
    const auto attempt = [&](auto resampling) { return resampling.fits(p) && run(resampling); };
    return attempt(Resampling<1, 1, 1, 1, 4, 4>{}) ||
           attempt(Resampling<2, 2, 1, 1, 4, 4>{}) || attempt(Resampling<1, 1, 2, 2, 4, 4>{}) ||
           // One axis at a time, with the long filters of augmentation.
           attempt(Resampling<2, 1, 1, 1, 12, 1>{}) || attempt(Resampling<1, 2, 1, 1, 1, 12>{}) ||
           attempt(Resampling<1, 1, 2, 1, 12, 1>{}) || attempt(Resampling<1, 1, 1, 2, 1, 12>{});
}

}  // namespace mimic3d
