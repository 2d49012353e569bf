// Activation and pooling of pixels whose channels are vectors, and back.
#pragma once

#include "gemm.h"

namespace recurve {
namespace {

template <class T>
using Places = typename Real<Vector<T>>::Bits;

// A byte for each lane of a vector.
template <class T>
struct BytesOf {
  typedef uint8_t type __attribute__((vector_size(lanes<T>)));
};

// The low bytes of the lanes, `count` at most.
template <class T>
RECURVE_INLINE void store_bytes(uint8_t* to, typename Real<Vector<T>>::Bits lanes_of, int64_t count) {
  const auto bytes = __builtin_convertvector(lanes_of, typename BytesOf<T>::type);
  if (count >= lanes<T>)
    __builtin_memcpy(to, &bytes, sizeof bytes);
  else
    __builtin_memcpy(to, &bytes, count);
}

template <class T>
void activate_pixels(const T* pre, int64_t count, Activation activation, T* to) {
  for (int64_t p = 0; p < count; p += lanes<T>) store(to + p, activate(load(pre + p), activation));
}

// The largest of a window of pixels that are vectors, the first of equals, and its place; or the mean.
template <class T, class F>
RECURVE_INLINE Vector<T> pool_vectors(Pool pool, int64_t height, int64_t width, const T* corner, int64_t row,
                                      int64_t pitch, Places<T>& place, const F& activation) {
  Vector<T> value = activation(load(corner));
  place = Places<T>{};
  for (int64_t r = 0; r < height; ++r)
    for (int64_t c = r == 0 ? 1 : 0; c < width; ++c) {
      const Vector<T> next = activation(load(corner + r * row + c * pitch));
      if (pool == Pool::max) {
        const auto wins = (next > value) | (next != next);
        value = wins ? next : value;
        place = wins ? Places<T>{} + static_cast<int32_t>(r * width + c) : place;
      } else {
        value += next;
      }
    }
  return pool == Pool::average ? value * (T(1) / static_cast<T>(height * width)) : value;
}

// Pixels that are rows of `pitch` elements into planes of channels; of `channels` at most a vector.
template <class T>
void to_planes(const T* pixels, int64_t pitch, int64_t count, int64_t channels, T* to, int64_t plane) {
  for (int64_t i = 0; i < count; i += lanes<T>) {
    if (i + lanes<T> > count && count >= lanes<T>) i = count - lanes<T>;  // whole vectors, some pixels again
    Vector<T> rows[lanes<T>];
    for (int64_t k = 0; k < lanes<T>; ++k) rows[k] = i + k < count ? load(pixels + (i + k) * pitch) : zero_vector<T>();
    transpose<T>(rows);
    for (int64_t k = 0; k < channels; ++k) store(to + k * plane + i, rows[k], count - i);
  }
}

template <class T>
void to_planes_of_bytes(const T* pixels, int64_t pitch, int64_t count, int64_t channels, uint8_t* to, int64_t plane) {
  for (int64_t i = 0; i < count; i += lanes<T>) {
    if (i + lanes<T> > count && count >= lanes<T>) i = count - lanes<T>;
    Vector<T> rows[lanes<T>];
    for (int64_t k = 0; k < lanes<T>; ++k) rows[k] = i + k < count ? load(pixels + (i + k) * pitch) : zero_vector<T>();
    transpose<T>(rows);
    for (int64_t k = 0; k < channels; ++k)
      store_bytes<T>(to + k * plane + i, __builtin_bit_cast(Places<T>, rows[k]), count - i);
  }
}

// Rows of the convolution, G vectors of output channels a pixel and `pitch` pixels a row, that become `pooled_rows`
// rows of y: activated, pooled and turned into planes. The rows are overwritten; `places` is room for as many vectors.
template <class T, int G>
void finish_rows(const ConvShape& s, T* rows, int64_t pitch, int64_t pooled_rows, int64_t channels, T* y,
                 uint8_t* y_places, T* places) {
  constexpr int64_t width = G * lanes<T>;
  const int64_t columns = s.pooled(1), count = pooled_rows * columns, plane = s.pooled(0) * columns;
  auto pool = [&](int64_t h, int64_t w, const auto& activation) {
    for (int64_t i = 0; i < pooled_rows; ++i)
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t at = (i * columns + j) * width;
        const T* corner = rows + (i * h * pitch + j * w) * width;
        for (int g = 0; g < G; ++g) {
          Places<T> place;
          store(rows + at + g * lanes<T>,
                pool_vectors(s.pool, h, w, corner + g * lanes<T>, pitch * width, width, place, activation));
          if (y_places != nullptr) store(places + at + g * lanes<T>, __builtin_bit_cast(Vector<T>, place));
        }
      }
  };
  auto pool_activated = [&](const auto& activation) {
    if (s.window[0] == 2 && s.window[1] == 2)
      pool(2, 2, activation);
    else
      pool(s.window[0], s.window[1], activation);
  };
  if (s.activation == Activation::relu) {
    pool_activated([](Vector<T> v) { return activate(v, Activation::relu); });
  } else {
    if (s.activation != Activation::none)
      activate_pixels(rows, pooled_rows * s.window[0] * pitch * width, s.activation, rows);
    pool_activated([](Vector<T> v) { return v; });
  }
  for (int64_t g = 0; g < G; ++g) {
    const int64_t own = least(lanes<T>, channels - g * lanes<T>);
    to_planes(rows + g * lanes<T>, width, count, own, y + g * lanes<T> * plane, plane);
    if (y_places != nullptr)
      to_planes_of_bytes(places + g * lanes<T>, width, count, own, y_places + g * lanes<T> * plane, plane);
  }
}

// Gradients of y times the slopes that follow from it, for `count` channels and so many pixels from element `first` on,
// pixel by pixel, and the places of the largest.
template <class T>
void load_gradients(const ConvBackward<T>& d, int64_t first, int64_t count, int64_t pixels, T* gradients, T* places) {
  const ConvShape& s = d.shape;
  const int64_t plane = s.pooled(0) * s.pooled(1);
  typename BytesOf<T>::type bytes{};
  for (int64_t p = 0; p < pixels; p += lanes<T>) {
    Vector<T> rows[lanes<T>] = {}, of_places[lanes<T>] = {};
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = first + k * plane + p, left = pixels - p;
      rows[k] = load(d.dy + at, left);
      if (!s.keeps_enough()) continue;
      const Vector<T> y = load(d.y + at, left);
      rows[k] = rows[k] * activation_slope(y, y, s.activation);
      if (!s.keeps_places()) continue;
      __builtin_memcpy(&bytes, d.places + at, static_cast<size_t>(least(left, lanes<T>)));
      of_places[k] = __builtin_bit_cast(Vector<T>, __builtin_convertvector(bytes, Places<T>));
    }
    transpose<T>(rows);
    for (int64_t k = 0; k < least(lanes<T>, pixels - p); ++k) store(gradients + (p + k) * lanes<T>, rows[k]);
    if (!s.keeps_places()) continue;
    transpose<T>(of_places);
    for (int64_t k = 0; k < least(lanes<T>, pixels - p); ++k) store(places + (p + k) * lanes<T>, of_places[k]);
  }
}

// From what load_gradients gave for row i of y the gradients of the convolution, for one vector of channels; returns
// their sum. `pre` are the convolution's rows, read unless enough was kept.
template <class T>
Vector<T> spread_row(const ConvShape& s, int64_t i, const T* pre, int64_t pre_pitch, int64_t pre_row,
                     const T* gradients, const T* places, T* to, int64_t pitch, int64_t row) {
  const T share = s.pool == Pool::average ? T(1) / static_cast<T>(s.window[0] * s.window[1]) : T(1);
  Vector<T> sum = zero_vector<T>();
  auto spread = [&](int64_t height, int64_t width) {
    for (int64_t j = 0; j < s.pooled(1); ++j) {
      const int64_t at = (i * s.pooled(1) + j) * lanes<T>;
      const Vector<T> gradient = load(gradients + at) * share;
      Places<T> best{};
      if (s.keeps_places())
        best = __builtin_bit_cast(Places<T>, load(places + at));
      else if (s.pool == Pool::max)
        pool_vectors(s.pool, height, width, pre + j * width * pre_pitch, pre_row, pre_pitch, best,
                     [&](Vector<T> v) { return activate(v, s.activation); });
      for (int64_t r = 0; r < height; ++r)
        for (int64_t c = 0; c < width; ++c) {
          Vector<T> own = gradient;
          if (s.pool == Pool::max) own = best == static_cast<int32_t>(r * width + c) ? own : zero_vector<T>();
          if (!s.keeps_enough()) {
            const Vector<T> v = load(pre + r * pre_row + (j * width + c) * pre_pitch);
            own = own * activation_slope(v, activate(v, s.activation), s.activation);
          }
          store(to + r * row + (j * width + c) * pitch, own);
          sum += own;
        }
    }
  };
  if (s.window[0] == 2 && s.window[1] == 2)
    spread(2, 2);
  else
    spread(s.window[0], s.window[1]);
  return sum;
}

}  // namespace
}  // namespace recurve
