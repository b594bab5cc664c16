// The operator mimic3d::upfirdn2d for CUDA tensors. upfirdn2d.py declares it and knows its derivative; here its result's
// memory is prepared and a kernel is started.
#include "upfirdn2d.h"

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

namespace mimic3d {

void launch_upfirdn2d(c10::ScalarType dtype, const UpfirdnParams& p, cudaStream_t stream);

namespace {

// Channels are neighbours in memory. What else there is, is written as contiguous. Must agree with upfirdn2d.py.
bool is_channels_last(const at::Tensor& x) { return x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous(); }

// One axis' size after resampling; coordinates of the padded image must be numbers of 32 bits.
int64_t resampled(int64_t size, int64_t up, int64_t down, int64_t pad_before, int64_t pad_after, int64_t taps) {
    TORCH_CHECK_VALUE(up >= 1 && down >= 1, "upfirdn2d: up and down must be at least 1, got ", up, " and ", down);
    const int64_t padded = size * up + pad_before + pad_after;
    TORCH_CHECK_VALUE(padded >= taps, "upfirdn2d: the padded image has ", padded, " pixels along an axis, the filter ", taps);
    constexpr int64_t LARGEST = INT32_MAX / 2;
    const bool fits = size * up <= LARGEST && std::abs(pad_before) <= LARGEST && padded <= LARGEST;
    TORCH_CHECK_VALUE(fits, "upfirdn2d: the image is too large");
    return (padded - taps) / down + 1;
}

at::Tensor upfirdn2d(const at::Tensor& x, const at::Tensor& f, at::IntArrayRef up, at::IntArrayRef down, at::IntArrayRef padding,
                     bool flip_filter, double gain) {
    TORCH_CHECK_VALUE(x.dim() == 4 && f.dim() == 2, "upfirdn2d: x must have shape [N, C, H, W] and f [h, w]");
    TORCH_CHECK_VALUE(f.numel() > 0, "upfirdn2d: the filter is empty");
    TORCH_CHECK_VALUE(f.device() == x.device(), "upfirdn2d: x and f must be on one device");
    TORCH_CHECK_VALUE(up.size() == 2 && down.size() == 2 && padding.size() == 4,
                      "upfirdn2d: up and down take 2 numbers, padding 4");
    const c10::cuda::CUDAGuard guard(x.device());
    const int64_t out_height = resampled(x.size(2), up[1], down[1], padding[2], padding[3], f.size(0));
    const int64_t out_width = resampled(x.size(3), up[0], down[0], padding[0], padding[1], f.size(1));
    const bool channels_last = is_channels_last(x);
    const at::Tensor y = at::empty({x.size(0), x.size(1), out_height, out_width}, x.options(),
                                   channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
    if (y.numel() == 0) return y;
    const bool wide = x.scalar_type() == at::kDouble;
    const at::Tensor filter = f.to(wide ? at::kDouble : at::kFloat).contiguous();
    UpfirdnParams p{};
    p.x = x.const_data_ptr();
    p.filter = filter.const_data_ptr();
    p.y = y.mutable_data_ptr();
    for (int i = 0; i < 4; i++) {
        p.x_stride[i] = x.stride(i);
        p.y_stride[i] = y.stride(i);
    }
    p.batch = static_cast<int>(x.size(0));
    p.channels = static_cast<int>(x.size(1));
    p.in_height = static_cast<int>(x.size(2));
    p.in_width = static_cast<int>(x.size(3));
    p.out_height = static_cast<int>(out_height);
    p.out_width = static_cast<int>(out_width);
    p.filter_height = static_cast<int>(f.size(0));
    p.filter_width = static_cast<int>(f.size(1));
    p.up_x = static_cast<int>(up[0]);
    p.up_y = static_cast<int>(up[1]);
    p.down_x = static_cast<int>(down[0]);
    p.down_y = static_cast<int>(down[1]);
    p.pad_left = static_cast<int>(padding[0]);
    p.pad_top = static_cast<int>(padding[2]);
    p.flip_filter = flip_filter;
    p.channels_last = channels_last;
    p.gain = gain;
    launch_upfirdn2d(x.scalar_type(), p, c10::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return y;
}

}  // namespace
}  // namespace mimic3d

TORCH_LIBRARY_IMPL(mimic3d, CUDA, m) { m.impl("upfirdn2d", &mimic3d::upfirdn2d); }
