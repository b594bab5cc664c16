// Runs what the CUDA kernels' threads do one after the other on a CPU: test_ops_kernels.py compares with PyTorch.
#include <vector>

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "torch_utils/ops/bias_act.h"
#include "torch_utils/ops/upfirdn2d.h"

using namespace mimic3d;

// Calls run(value of the type) for the dtypes numbered half, bfloat16, float, double.
template <typename Run> static void with_dtype(int dtype, Run run) {
    if (dtype == 0) run(c10::Half());
    if (dtype == 1) run(c10::BFloat16());
    if (dtype == 2) run(float());
    if (dtype == 3) run(double());
}

template <typename T> static void bias_act_blocks(const BiasActParams& p, bool backward) {
    using S = typename Arithmetic<T>::type;
    for (int64_t block = 0; block * BLOCK_ELEMENTS<T> < p.size; block++) {
        S sum = 0;
        for (int thread = 0; thread < BIAS_ACT_THREADS; thread++)
            if (backward)
                sum += bias_act_grad_thread<T>(p, block, thread);
            else
                bias_act_thread<T>(p, block, thread);
        if (p.block_sums != nullptr) static_cast<S*>(p.block_sums)[block] = sum;
    }
}

extern "C" void run_bias_act(int dtype, bool backward, const BiasActParams* p) {
    with_dtype(dtype, [&](auto value) { bias_act_blocks<decltype(value)>(*p, backward); });
}

// Threads of a tile share memory: all fetch, then all compute, as the barrier between the two has it.
template <typename R, typename T> static bool run_patches(const UpfirdnParams& p) {
    const Taps<R, float> taps(p);
    if (p.channels_last) {
        for (int64_t index = 0; index < channels_last_patches<R>(p); index++) channels_last_patch<R, T>(p, taps, index);
        return true;
    }
    std::vector<float> shared(Tile<R>::IN_HEIGHT * Tile<R>::IN_WIDTH);
    for (int64_t index = 0; index < Tile<R>::count(p); index++) {
        const Tile<R> tile(p, index);
        shared.assign(shared.size(), NAN);
        for (int thread = 0; thread < Tile<R>::THREADS; thread++) tile.template fetch<T>(p, thread, shared.data());
        for (int thread = 0; thread < Tile<R>::THREADS; thread++) tile.template compute<T>(p, taps, thread, shared.data());
    }
    return true;
}

template <typename T, typename Index> static void run_outputs(const UpfirdnParams& p) {
    const Index outputs = static_cast<Index>(p.batch) * p.channels * p.out_height * p.out_width;
    for (Index index = 0; index < outputs; index++) upfirdn_output<T, Index>(p, index);
}

// kernel: 0, patches; 1, single outputs; 2, single outputs with 64-bit numbers. False if patches are not meant for this case.
extern "C" bool run_upfirdn2d(int dtype, int kernel, const UpfirdnParams* p) {
    bool done = true;
    with_dtype(dtype, [&](auto value) {
        using T = decltype(value);
        if (kernel == 1) return run_outputs<T, uint32_t>(*p);
        if (kernel == 2) return run_outputs<T, uint64_t>(*p);
        if constexpr (!std::is_same_v<T, double>)
            done = with_resampling(*p, [&](auto resampling) { return run_patches<decltype(resampling), T>(*p); });
        else
            done = false;
    });
    return done;
}
