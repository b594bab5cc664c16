// The operators mimic3d::bias_act and mimic3d::bias_act_grad for CUDA tensors. bias_act.py declares them and knows their
// shapes and derivatives; here their memory is prepared and the kernels are started.
#include "bias_act.h"

#include <optional>
#include <tuple>
#include <vector>

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

namespace mimic3d {

void launch_bias_act(c10::ScalarType dtype, const BiasActParams& p, bool backward, cudaStream_t stream);

namespace {

// The same values without gaps or overlaps in memory; the order of the dimensions in memory stays.
at::Tensor dense(const at::Tensor& x) {
    return x.is_non_overlapping_and_dense() ? x : at::empty_like(x).copy_(x);
}

bool same_layout(const at::Tensor& a, const at::Tensor& b) {
    for (int64_t i = 0; i < a.dim(); i++)
        if (a.size(i) != 1 && a.stride(i) != b.stride(i)) return false;
    return true;
}

// How many elements of one channel lie side by side in memory.
int64_t run_length(const at::Tensor& x, int64_t dim) { return x.size(dim) == 1 ? x.numel() : x.stride(dim); }

double rounded(double value, c10::ScalarType dtype) {
    if (dtype == c10::ScalarType::Half) return static_cast<float>(c10::Half(static_cast<float>(value)));
    if (dtype == c10::ScalarType::BFloat16) return static_cast<float>(c10::BFloat16(static_cast<float>(value)));
    return value;
}

bool begins_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

void start(const at::Tensor& x, BiasActParams p, double slope, double gain, std::optional<double> clamp, bool backward) {
    if (x.numel() == 0) return;
    p.size = x.numel();
    p.slope = slope;
    p.gain = gain;
    p.clamp = clamp ? rounded(*clamp, x.scalar_type()) : -1.0;
    p.aligned = begins_aligned(p.input) && begins_aligned(p.y) && begins_aligned(p.output);
    launch_bias_act(x.scalar_type(), p, backward, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
}

at::Tensor bias_act(const at::Tensor& input, const std::optional<at::Tensor>& b, int64_t dim, double slope, double gain,
                    std::optional<double> clamp) {
    const c10::cuda::CUDAGuard guard(input.device());
    const at::Tensor x = dense(input), y = at::empty_like(x);
    BiasActParams p{};
    p.input = x.const_data_ptr();
    p.output = y.mutable_data_ptr();
    at::Tensor bias;
    if (b) {
        TORCH_CHECK_VALUE(dim >= 0 && dim < x.dim(), "bias_act: dim must be one of x's dimensions, got ", dim);
        TORCH_CHECK_VALUE(b->dim() == 1 && b->size(0) == x.size(dim), "bias_act: b must have shape [", x.size(dim), "]");
        TORCH_CHECK_VALUE(b->scalar_type() == x.scalar_type() && b->device() == x.device(),
                          "bias_act: b must have x's dtype and device");
        bias = b->contiguous();
        p.bias = bias.const_data_ptr();
        p.bias_size = x.size(dim);
        p.bias_stride = run_length(x, dim);
    }
    start(x, p, slope, gain, clamp, /*backward=*/false);
    return y;
}

// The gradient of b [size of dim `dim`] from the sums of blocks, each of which lies within one channel.
at::Tensor sum_of_blocks(const at::Tensor& block_sums, int64_t channels, int64_t blocks_per_run) {
    return block_sums.view({-1, channels, blocks_per_run}).sum({0, 2});
}

at::Tensor sum_along(const at::Tensor& dx, int64_t dim) {
    std::vector<int64_t> others;
    for (int64_t i = 0; i < dx.dim(); i++)
        if (i != dim) others.push_back(i);
    return others.empty() ? dx.clone() : dx.sum(others);
}

// (gradient of x, gradient of b); without bias_dim the second is empty.
std::tuple<at::Tensor, at::Tensor> bias_act_grad(const at::Tensor& grad_output, const at::Tensor& output,
                                                 std::optional<int64_t> bias_dim, double slope, double gain,
                                                 std::optional<double> clamp) {
    const c10::cuda::CUDAGuard guard(output.device());
    TORCH_CHECK_VALUE(grad_output.sizes() == output.sizes() && grad_output.scalar_type() == output.scalar_type() &&
                      grad_output.device() == output.device(),
                      "bias_act_grad: both tensors must have one shape, dtype and device");
    TORCH_CHECK_VALUE(!bias_dim || (*bias_dim >= 0 && *bias_dim < output.dim()),
                      "bias_act_grad: bias_dim must be one of the dimensions");
    const at::Tensor y = dense(output), dx = at::empty_like(y);
    const at::Tensor dy = same_layout(grad_output, y) ? grad_output : at::empty_like(y).copy_(grad_output);
    BiasActParams p{};
    p.input = dy.const_data_ptr();
    p.y = y.const_data_ptr();
    p.output = dx.mutable_data_ptr();
    // Where a channel's run consists of whole blocks, the kernel sums on the way; else that takes another pass.
    const int64_t block = BLOCK_BYTES / y.element_size();
    const bool sums_blocks = bias_dim && y.numel() > 0 && run_length(y, *bias_dim) % block == 0;
    at::Tensor block_sums;
    if (sums_blocks) {
        const auto arithmetic = y.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
        block_sums = at::empty({y.numel() / block}, y.options().dtype(arithmetic));
        p.block_sums = block_sums.mutable_data_ptr();
    }
    start(y, p, slope, gain, clamp, /*backward=*/true);
    if (!bias_dim) return {dx, at::empty({0}, dx.options())};
    if (!sums_blocks) return {dx, sum_along(dx, *bias_dim)};
    return {dx, sum_of_blocks(block_sums, y.size(*bias_dim), run_length(y, *bias_dim) / block).to(dx.scalar_type())};
}

}  // namespace
}  // namespace mimic3d

TORCH_LIBRARY_IMPL(mimic3d, CUDA, m) {
    m.impl("bias_act", &mimic3d::bias_act);
    m.impl("bias_act_grad", &mimic3d::bias_act_grad);
}
