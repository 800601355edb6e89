// y[m,n] = x[m,k] w[k,n] block by block on oneDNN's micro-kernels, as PyTorch exports them: f32, bf16, int8.
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <type_traits>
#include <vector>

namespace {

// Blocks of y (rows and columns) and of k. w is packed as [n / columns][k][columns], zero-padded.
struct Blocking {
  int64_t m, n, k, rows, columns, depth;
};

#if defined(__AVX512BF16__)
void round_rows(const float* sums, int64_t rows, int64_t columns, int64_t width, at::BFloat16* y, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; c += 16) {
      const __mmask16 mask = columns - c >= 16 ? 0xffff : (1u << (columns - c)) - 1;
      const __m512 row = _mm512_maskz_loadu_ps(mask, sums + r * width + c);
      _mm256_mask_storeu_epi16(y + r * stride + c, mask, (__m256i)_mm512_cvtneps_pbh(row));
    }
}
#endif

template <class T, class Sum, class Y>
void multiply(const T* x, const T* w, Y* y, const Blocking& b) {
  constexpr bool kRounds = !std::is_same_v<Sum, Y>;
  constexpr int64_t kInner = 4 / sizeof(T);  // values of k side by side in a packed w
  const int64_t padded = (b.k + kInner - 1) / kInner * kInner;
#pragma omp parallel if (omp_get_max_threads() > 1)
  {
    std::vector<Sum> sums(kRounds ? b.rows * b.columns : 0);
#pragma omp for collapse(2)
    for (int64_t column = 0; column < b.n; column += b.columns)
      for (int64_t row = 0; row < b.m; row += b.rows) {
        const int64_t rows = std::min(b.rows, b.m - row), columns = std::min(b.columns, b.n - column);
        Y* block = y + row * b.n + column;
        Sum* to = kRounds ? sums.data() : reinterpret_cast<Sum*>(block);
        const int64_t stride = kRounds ? b.columns : b.n;
        for (int64_t k = 0; k < b.k; k += b.depth)
          at::native::cpublas::brgemm(rows, columns, std::min(b.depth, b.k - k), b.k, b.columns, stride, k > 0,
                                      x + row * b.k + k, w + column * padded + k * b.columns, to, kInner > 1);
        if constexpr (kRounds) round_rows(to, rows, columns, b.columns, block, b.n);
      }
    at::native::cpublas::brgemm_release(kInner > 1);  // or the next user of the tiles would find these configured
  }
}

}  // namespace

// 0, or 1 if oneDNN has no micro-kernel for this CPU.
extern "C" int brgemm_matmul(const void* x, const void* w, void* y, const Blocking* blocking, int itemsize) {
  try {
#if defined(__AVX512BF16__)
    if (itemsize == 2)
      multiply<at::BFloat16, float>((const at::BFloat16*)x, (const at::BFloat16*)w, (at::BFloat16*)y, *blocking);
    else
      multiply<signed char, int32_t>((const signed char*)x, (const signed char*)w, (int32_t*)y, *blocking);
#else
    multiply<float, float>((const float*)x, (const float*)w, (float*)y, *blocking);
#endif
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
