// CUDA kernels of bias_act: one pass over memory, in vectors of 16 bytes. What a thread does stands in bias_act.h.
#include "bias_act.h"

#include <stdexcept>

#include <c10/core/ScalarType.h>
#include <cuda_runtime.h>

namespace mimic3d {
namespace {

template <typename T> __global__ void __launch_bounds__(BIAS_ACT_THREADS) forward_kernel(const BiasActParams p) {
    bias_act_thread<T>(p, blockIdx.x, threadIdx.x);
}

// The sum of all threads' values, in thread 0. Always in the same order.
template <typename S> __device__ S block_sum(S value) {
    __shared__ S of_warp[BIAS_ACT_THREADS / 32];
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int warp = 1; warp < BIAS_ACT_THREADS / 32; warp++) value += of_warp[warp];
    return value;
}

template <typename T> __global__ void __launch_bounds__(BIAS_ACT_THREADS) backward_kernel(const BiasActParams p) {
    using S = typename Arithmetic<T>::type;
    const S of_thread = bias_act_grad_thread<T>(p, blockIdx.x, threadIdx.x);
    if (p.block_sums == nullptr) return;
    const S of_block = block_sum(of_thread);
    if (threadIdx.x == 0) static_cast<S*>(p.block_sums)[blockIdx.x] = of_block;
}

template <typename T> void launch(const BiasActParams& p, bool backward, cudaStream_t stream) {
    // Memory ends before blocks cannot be numbered any more: there are at least 1024 elements to a block.
    const auto blocks = static_cast<unsigned>((p.size + BLOCK_ELEMENTS<T> - 1) / BLOCK_ELEMENTS<T>);
    const auto kernel = backward ? backward_kernel<T> : forward_kernel<T>;
    kernel<<<blocks, BIAS_ACT_THREADS, 0, stream>>>(p);
}

}  // namespace

void launch_bias_act(c10::ScalarType dtype, const BiasActParams& p, bool backward, cudaStream_t stream) {
    switch (dtype) {
        case c10::ScalarType::Half: return launch<c10::Half>(p, backward, stream);
        case c10::ScalarType::BFloat16: return launch<c10::BFloat16>(p, backward, stream);
        case c10::ScalarType::Float: return launch<float>(p, backward, stream);
        case c10::ScalarType::Double: return launch<double>(p, backward, stream);
        default: throw std::invalid_argument("bias_act: dtype must be float16, bfloat16, float32 or float64");
    }
}

}  // namespace mimic3d
