// scale * x + mask as an input: computed in f32 as it is read.
#pragma once

#include "passes.h"

template <class T>
struct Masked {
  using element = T;
  const T *x, *mask;
  float scale;
  long mask_rows;

  Masked operator+(long n) const { return {x + n, mask + n, scale, mask_rows}; }
  float operator[](long i) const { return std::fma(value(x[i]), scale, value(mask[i])); }
};

template <class T>
inline Unit<T> load(const Masked<T>& in, auto count) {
  Unit<T> x = load(in.x, count), mask = load(in.mask, count);
  for (int k = 0; k < Unit<T>::vecs; ++k) x.part[k] = fma(x.part[k], Vec(in.scale), mask.part[k]);
  return x;
}
template <class T>
inline Unit<T> load_ahead(const Masked<T>& in, auto count, long ahead) {
  prefetch(in.x, 2 * ahead);
  prefetch(in.mask, 2 * ahead);
  return load(in, count);
}

// A row of an input; the rows of a mask serve again and again.
template <class In>
inline In row_of(In x, long row, long n) {
  return x + row * n;
}
template <class T>
inline Masked<T> row_of(Masked<T> in, long row, long n) {
  return {in.x + row * n, in.mask + row % in.mask_rows * n, in.scale, in.mask_rows};
}
