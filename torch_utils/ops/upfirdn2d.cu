// CUDA kernels of upfirdn2d. What a thread does stands in upfirdn2d.h.
#include "upfirdn2d.h"

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include <c10/core/ScalarType.h>
#include <cuda_runtime.h>

namespace mimic3d {
namespace {

constexpr int THREADS = 256;  // of a block of the kernels without tiles

template <typename T, typename Index>
__global__ void __launch_bounds__(THREADS) output_kernel(const UpfirdnParams p, Index outputs) {
    const Index step = static_cast<Index>(gridDim.x) * THREADS;
    for (Index index = static_cast<Index>(blockIdx.x) * THREADS + threadIdx.x; index < outputs; index += step)
        upfirdn_output<T, Index>(p, index);
}

template <typename R, typename T> __global__ void __launch_bounds__(Tile<R>::THREADS) tile_kernel(const UpfirdnParams p) {
    __shared__ float shared[Tile<R>::IN_HEIGHT * Tile<R>::IN_WIDTH];
    const Tile<R> tile(p, blockIdx.x);
    tile.template fetch<T>(p, threadIdx.x, shared);
    const Taps<R, float> taps(p);
    __syncthreads();
    tile.template compute<T>(p, taps, threadIdx.x, shared);
}

template <typename R, typename T>
__global__ void __launch_bounds__(THREADS) channels_last_kernel(const UpfirdnParams p, uint32_t patches) {
    const uint32_t index = blockIdx.x * THREADS + threadIdx.x;
    if (index >= patches) return;
    channels_last_patch<R, T>(p, Taps<R, float>(p), index);
}

unsigned blocks_for(int64_t items) {
    return static_cast<unsigned>(std::min<int64_t>((items + THREADS - 1) / THREADS, INT32_MAX));
}

// False where there are too many pieces to number them in 32 bits.
template <typename R, typename T> bool launch_patches(const UpfirdnParams& p, cudaStream_t stream) {
    const int64_t pieces = p.channels_last ? channels_last_patches<R>(p) : Tile<R>::count(p);
    if (pieces > INT32_MAX) return false;
    if (p.channels_last)
        channels_last_kernel<R, T><<<blocks_for(pieces), THREADS, 0, stream>>>(p, static_cast<uint32_t>(pieces));
    else
        tile_kernel<R, T><<<static_cast<unsigned>(pieces), Tile<R>::THREADS, 0, stream>>>(p);
    return true;
}

template <typename T> void launch(const UpfirdnParams& p, cudaStream_t stream) {
    if constexpr (!std::is_same_v<T, double>) {  // doubles are for checks: the plain kernel is enough
        const auto run = [&](auto resampling) { return launch_patches<decltype(resampling), T>(p, stream); };
        if (with_resampling(p, run)) return;
    }
    const int64_t outputs = static_cast<int64_t>(p.batch) * p.channels * p.out_height * p.out_width;
    if (outputs <= INT32_MAX)
        output_kernel<T, uint32_t><<<blocks_for(outputs), THREADS, 0, stream>>>(p, static_cast<uint32_t>(outputs));
    else
        output_kernel<T, uint64_t><<<blocks_for(outputs), THREADS, 0, stream>>>(p, static_cast<uint64_t>(outputs));
}

}  // namespace

void launch_upfirdn2d(c10::ScalarType dtype, const UpfirdnParams& p, cudaStream_t stream) {
    switch (dtype) {
        case c10::ScalarType::Half: return launch<c10::Half>(p, stream);
        case c10::ScalarType::BFloat16: return launch<c10::BFloat16>(p, stream);
        case c10::ScalarType::Float: return launch<float>(p, stream);
        case c10::ScalarType::Double: return launch<double>(p, stream);
        default: throw std::invalid_argument("upfirdn2d: dtype must be float16, bfloat16, float32 or float64");
    }
}

}  // namespace mimic3d
