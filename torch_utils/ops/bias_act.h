// Bias, leaky ReLU, gain and clamp: the arithmetic, and what one thread does with it.
//
// Plain C++ as well as CUDA, so that a test can run every line on a CPU (test_ops_kernels.py); bias_act.cu wraps it
// in kernels, bias_act.cpp in operators. bias_act.py is the specification.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels.h"

namespace mimic3d {

// Tensors lie densely in memory, all with the same strides; elements are numbered in the order of memory.
struct BiasActParams {
    const void* input;      // forward: x; backward: the gradient of y
    const void* bias;       // forward only, or null: element i is given bias[i / bias_stride % bias_size]
    const void* y;          // backward only: the forward pass's
    void* output;           // forward: y; backward: the gradient of x
    void* block_sums;       // backward only, or null: each block's sum of what it writes, in the arithmetic's type
    int64_t size;           // elements
    int64_t bias_stride, bias_size;
    double slope, gain;  // slope: below 0; 1: no activation
    double clamp;  // already rounded to the tensors' type; negative: none
    bool aligned;  // all tensors begin at a multiple of 16 bytes
};

constexpr int BIAS_ACT_THREADS = 256;    // of a block
constexpr int VECTORS_PER_THREAD = 2;    // both are requested before the first is used
template <typename T> constexpr int VECTOR_WIDTH = 16 / sizeof(T);
constexpr int BLOCK_BYTES = BIAS_ACT_THREADS * VECTORS_PER_THREAD * 16;  // that a block handles of each tensor
template <typename T> constexpr int BLOCK_ELEMENTS = BLOCK_BYTES / sizeof(T);

template <typename T> struct alignas(16) Vector {
    T items[VECTOR_WIDTH<T>];
};

// ---- One element

// Comparisons are written so that not-a-number stays.
template <typename S> MIMIC3D_HOST_DEVICE S forward_element(S z, S slope, S gain, S clamp) {
    const S y = (z > S(0) ? z : z * slope) * gain;
    if (clamp < S(0)) return y;
    return y > clamp ? clamp : y < -clamp ? -clamp : y;
}

// y has the sign of the activation's argument, or with a negative gain the other one.
template <typename S> MIMIC3D_HOST_DEVICE S backward_element(S dy, S y, S slope, S gain, S clamp) {
    if (clamp >= S(0) && !(std::abs(y) < clamp)) return S(0);
    return dy * gain * (y * gain > S(0) ? S(1) : slope);
}

// ---- One vector of 16 bytes

template <typename T> MIMIC3D_HOST_DEVICE Vector<T> load_vector(const void* from, int64_t start, const BiasActParams& p) {
    const T* items = static_cast<const T*>(from) + start;
    if (p.aligned && start + VECTOR_WIDTH<T> <= p.size) return *reinterpret_cast<const Vector<T>*>(items);
    Vector<T> vector;
    MIMIC3D_UNROLL
    for (int i = 0; i < VECTOR_WIDTH<T>; i++) vector.items[i] = start + i < p.size ? items[i] : T(0.0f);
    return vector;
}

template <typename T> MIMIC3D_HOST_DEVICE void store_vector(const Vector<T>& vector, int64_t start, const BiasActParams& p) {
    T* items = static_cast<T*>(p.output) + start;
    if (p.aligned && start + VECTOR_WIDTH<T> <= p.size) {
        *reinterpret_cast<Vector<T>*>(items) = vector;
        return;
    }
    MIMIC3D_UNROLL
    for (int i = 0; i < VECTOR_WIDTH<T>; i++)
        if (start + i < p.size) items[i] = vector.items[i];
}

// Where an element stands in the bias: its channel, and how many elements of this channel's run lie before it.
struct BiasPosition {
    int64_t channel, offset;
};

MIMIC3D_HOST_DEVICE BiasPosition bias_position(int64_t element, const BiasActParams& p) {
    if (p.size <= INT32_MAX) {  // 64-bit divisions cost as much as all the rest
        const uint32_t place = static_cast<uint32_t>(element), stride = static_cast<uint32_t>(p.bias_stride);
        return {place / stride % static_cast<uint32_t>(p.bias_size), place % stride};
    }
    return {element / p.bias_stride % p.bias_size, element % p.bias_stride};
}

template <typename T, typename S = typename Arithmetic<T>::type>
MIMIC3D_HOST_DEVICE void add_bias(S (&z)[VECTOR_WIDTH<T>], int64_t start, const BiasActParams& p) {
    const T* bias = static_cast<const T*>(p.bias);
    BiasPosition at = bias_position(start, p);
    if (at.offset + VECTOR_WIDTH<T> <= p.bias_stride) {  // one channel only: the usual case where channels come first
        const S value = static_cast<S>(bias[at.channel]);
        MIMIC3D_UNROLL
        for (int i = 0; i < VECTOR_WIDTH<T>; i++) z[i] += value;
        return;
    }
    MIMIC3D_UNROLL
    for (int i = 0; i < VECTOR_WIDTH<T>; i++) {
        z[i] += static_cast<S>(bias[at.channel]);
        if (++at.offset == p.bias_stride) {
            at.offset = 0;
            if (++at.channel == p.bias_size) at.channel = 0;
        }
    }
}

// ---- One thread: VECTORS_PER_THREAD vectors of a block's BLOCK_ELEMENTS elements, those of one round side by side

template <typename T> MIMIC3D_HOST_DEVICE int64_t vector_start(int64_t block, int thread, int round) {
    return block * BLOCK_ELEMENTS<T> + (static_cast<int64_t>(round) * BIAS_ACT_THREADS + thread) * VECTOR_WIDTH<T>;
}

template <typename T> MIMIC3D_HOST_DEVICE void bias_act_thread(const BiasActParams& p, int64_t block, int thread) {
    using S = typename Arithmetic<T>::type;
    Vector<T> x[VECTORS_PER_THREAD];
    MIMIC3D_UNROLL
    for (int round = 0; round < VECTORS_PER_THREAD; round++)
        x[round] = load_vector<T>(p.input, vector_start<T>(block, thread, round), p);
    MIMIC3D_UNROLL
    for (int round = 0; round < VECTORS_PER_THREAD; round++) {
        const int64_t start = vector_start<T>(block, thread, round);
        if (start >= p.size) return;
        S z[VECTOR_WIDTH<T>];
        MIMIC3D_UNROLL
        for (int i = 0; i < VECTOR_WIDTH<T>; i++) z[i] = static_cast<S>(x[round].items[i]);
        if (p.bias != nullptr) add_bias<T>(z, start, p);
        MIMIC3D_UNROLL
        for (int i = 0; i < VECTOR_WIDTH<T>; i++)
            x[round].items[i] = static_cast<T>(forward_element(z[i], S(p.slope), S(p.gain), S(p.clamp)));
        store_vector<T>(x[round], start, p);
    }
}

// Returns the sum of what it wrote.
template <typename T, typename S = typename Arithmetic<T>::type>
MIMIC3D_HOST_DEVICE S bias_act_grad_thread(const BiasActParams& p, int64_t block, int thread) {
    S sum = S(0);
    Vector<T> dy[VECTORS_PER_THREAD], y[VECTORS_PER_THREAD];
    MIMIC3D_UNROLL
    for (int round = 0; round < VECTORS_PER_THREAD; round++) {
        dy[round] = load_vector<T>(p.input, vector_start<T>(block, thread, round), p);
        y[round] = load_vector<T>(p.y, vector_start<T>(block, thread, round), p);
    }
    MIMIC3D_UNROLL
    for (int round = 0; round < VECTORS_PER_THREAD; round++) {
        MIMIC3D_UNROLL
        for (int i = 0; i < VECTOR_WIDTH<T>; i++) {
            const S dx = backward_element(static_cast<S>(dy[round].items[i]), static_cast<S>(y[round].items[i]), S(p.slope),
                                          S(p.gain), S(p.clamp));
            dy[round].items[i] = static_cast<T>(dx);
            sum += dx;  // 0 behind the last element, where dy is read as 0
        }
        store_vector<T>(dy[round], vector_start<T>(block, thread, round), p);
    }
    return sum;
}

}  // namespace mimic3d
