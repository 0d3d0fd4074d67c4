// What selective_scan.cu asks of a GPU beyond C++: two-byte numbers, the fast exponential, copies to shared memory
// that do not wait. Written as PTX, since NVRTC alone has no headers. Compute capability 8.0 and newer.

struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };

__device__ __forceinline__ float number(float v) { return v; }
__device__ __forceinline__ float number(bfloat16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ __forceinline__ float number(float16 v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
    return f;
}

__device__ __forceinline__ void put(float& to, float v) { to = v; }
__device__ __forceinline__ void put(bfloat16& to, float v) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(v)); }
__device__ __forceinline__ void put(float16& to, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(v)); }

// 2^v, with a relative error of 2^-22.
__device__ __forceinline__ float power_of_2(float v) {
    float f;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(f) : "f"(v));
    return f;
}

// a / b, to about the last bit.
__device__ __forceinline__ float quotient(float a, float b) { return __fdividef(a, b); }

// 16 bytes, or as many zeros. It is there after copies_done() and a __syncthreads().
__device__ __forceinline__ void copy_16(void* to, const void* from, bool inside) {
    const unsigned address = (unsigned)__cvta_generic_to_shared(to);
    const int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ float exchange(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
