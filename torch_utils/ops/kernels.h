// What the operators' headers share. They are plain C++ as well as CUDA.
#pragma once

#ifdef __CUDACC__
#define MIMIC3D_HOST_DEVICE __host__ __device__ __forceinline__
#define MIMIC3D_UNROLL _Pragma("unroll")  // arrays that are indexed by a loop variable must end up in registers
#else
#define MIMIC3D_HOST_DEVICE inline
#define MIMIC3D_UNROLL
#endif

namespace mimic3d {

// Arithmetic is done in float, for double tensors in double.
template <typename T> struct Arithmetic { using type = float; };
template <> struct Arithmetic<double> { using type = double; };

}  // namespace mimic3d
