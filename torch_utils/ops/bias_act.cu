// CUDA kernels of bias_act: one pass over memory, in vectors of 16 bytes. What a thread does stands in bias_act.h.
#include "bias_act.h"

#include <algorithm>
#include <stdexcept>

#include <c10/core/ScalarType.h>
#include <cuda_runtime.h>

namespace mimic3d {
namespace {

template <typename T, Activation A, bool BACKWARD>
__global__ void __launch_bounds__(BIAS_ACT_THREADS) bias_act_kernel(const BiasActParams p) {
    const int64_t blocks = (p.size + BLOCK_ELEMENTS<T> - 1) / BLOCK_ELEMENTS<T>;
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        if constexpr (BACKWARD)
            bias_act_grad_thread<T, A>(p, block, threadIdx.x);
        else
            bias_act_thread<T, A>(p, block, threadIdx.x);
    }
}

template <typename T, Activation A> void launch(const BiasActParams& p, bool backward, cudaStream_t stream) {
    const int64_t blocks = (p.size + BLOCK_ELEMENTS<T> - 1) / BLOCK_ELEMENTS<T>;
    const auto kernel = backward ? bias_act_kernel<T, A, true> : bias_act_kernel<T, A, false>;
    kernel<<<static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX)), BIAS_ACT_THREADS, 0, stream>>>(p);
}

template <typename T> void launch(Activation activation, const BiasActParams& p, bool backward, cudaStream_t stream) {
    switch (activation) {
        case Activation::linear: return launch<T, Activation::linear>(p, backward, stream);
        case Activation::relu: return launch<T, Activation::relu>(p, backward, stream);
        case Activation::lrelu: return launch<T, Activation::lrelu>(p, backward, stream);
        case Activation::tanh: return launch<T, Activation::tanh>(p, backward, stream);
        case Activation::sigmoid: return launch<T, Activation::sigmoid>(p, backward, stream);
        case Activation::elu: return launch<T, Activation::elu>(p, backward, stream);
        case Activation::selu: return launch<T, Activation::selu>(p, backward, stream);
        case Activation::softplus: return launch<T, Activation::softplus>(p, backward, stream);
        case Activation::swish: return launch<T, Activation::swish>(p, backward, stream);
    }
}

}  // namespace

void launch_bias_act(c10::ScalarType dtype, Activation activation, const BiasActParams& p, bool backward, cudaStream_t stream) {
    switch (dtype) {
        case c10::ScalarType::Half: return launch<c10::Half>(activation, p, backward, stream);
        case c10::ScalarType::BFloat16: return launch<c10::BFloat16>(activation, p, backward, stream);
        case c10::ScalarType::Float: return launch<float>(activation, p, backward, stream);
        case c10::ScalarType::Double: return launch<double>(activation, p, backward, stream);
        default: throw std::invalid_argument("bias_act: dtype must be float16, bfloat16, float32 or float64");
    }
}

}  // namespace mimic3d
