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

#if defined(__AVX2__) && !defined(__AVX512F__)
RECURVE_INLINE uint64_t to_bytes(Int32Vector lanes_of) {  // a conversion by the compiler takes 40 instructions
  const auto all = (__m256i)lanes_of;
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
}
#else
RECURVE_INLINE BytesOf<float>::type to_bytes(Int32Vector lanes_of) {
  return __builtin_convertvector(lanes_of, BytesOf<float>::type);
}
#endif
RECURVE_INLINE BytesOf<double>::type to_bytes(Int64Vector lanes_of) {
  return __builtin_convertvector(lanes_of, BytesOf<double>::type);
}

// The low bytes of the lanes, `count` at most, of values from 0 to 255.
template <class T>
RECURVE_INLINE void store_bytes(uint8_t* to, Places<T> lanes_of, int64_t count) {
  const auto bytes = to_bytes(lanes_of);
  if (count >= lanes<T>)
    __builtin_memcpy(to, &bytes, sizeof bytes);
  else
    __builtin_memcpy(to, &bytes, static_cast<size_t>(count));
}

#if defined(__AVX2__) && !defined(__AVX512F__)
RECURVE_INLINE Int32Vector from_bytes(BytesOf<float>::type bytes) {
  return (Int32Vector)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(__builtin_bit_cast(int64_t, bytes)));
}
#else
RECURVE_INLINE Int32Vector from_bytes(BytesOf<float>::type bytes) {
  return __builtin_convertvector(bytes, Int32Vector);
}
#endif
RECURVE_INLINE Int64Vector from_bytes(BytesOf<double>::type bytes) {
  return __builtin_convertvector(bytes, Int64Vector);
}

// The lanes of so many bytes, at most a vector; the others are zero.
template <class T>
RECURVE_INLINE Places<T> load_bytes(const uint8_t* from, int64_t count) {
  typename BytesOf<T>::type bytes{};
  if (count >= lanes<T>)
    __builtin_memcpy(&bytes, from, sizeof bytes);
  else
    __builtin_memcpy(&bytes, from, static_cast<size_t>(count));
  return from_bytes(bytes);
}

template <class T>
void activate_pixels(const T* pre, int64_t count, Activation activation, T* to) {
  for (int64_t p = 0; p < count; p += lanes<T>) store(to + p, activate(load(pre + p), activation));
}

// Keeps the larger of `value` and `next`, the first of equals and the last that is not a number, and its place.
template <class T>
RECURVE_INLINE void take_larger(Vector<T> next, int32_t next_place, Vector<T>& value, Places<T>& place) {
  const auto larger = next > value;
  const auto unknown = next != next;
  value = unknown ? next : larger ? next : value;
  place = unknown ? Places<T>{} + next_place : larger ? Places<T>{} + next_place : place;
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
      if (pool == Pool::max)
        take_larger<T>(next, static_cast<int32_t>(r * width + c), value, place);
      else
        value += next;
    }
  return pool == Pool::average ? value * (T(1) / static_cast<T>(height * width)) : value;
}

// Pixels that are rows of `pitch` elements into channels, of `channels` at most a vector: calls put(channel, i, vector,
// how many of it are left) for pixels from i on.
template <class T, class Put>
RECURVE_INLINE void for_planes(const T* pixels, int64_t pitch, int64_t count, int64_t channels, const Put& put) {
  for (int64_t i = 0; i < count; i += lanes<T>) {
    if (i + lanes<T> > count && count >= lanes<T>) i = count - lanes<T>;  // whole vectors, some pixels again
    Vector<T> rows[lanes<T>];
    RECURVE_UNROLL
    for (int64_t k = 0; k < lanes<T>; ++k) rows[k] = i + k < count ? load(pixels + (i + k) * pitch) : zero_vector<T>();
    transpose<T>(rows);
    RECURVE_UNROLL
    for (int64_t k = 0; k < lanes<T>; ++k)
      if (k < channels) put(k, i, rows[k], count - i);
  }
}

template <class T>
void to_planes(const T* pixels, int64_t pitch, int64_t count, int64_t channels, T* to, int64_t plane) {
  for_planes(pixels, pitch, count, channels,
             [&](int64_t k, int64_t i, Vector<T> row, int64_t left) { store(to + k * plane + i, row, left); });
}

template <class T>
void to_planes_of_bytes(const T* pixels, int64_t pitch, int64_t count, int64_t channels, uint8_t* to, int64_t plane) {
  for_planes(pixels, pitch, count, channels, [&](int64_t k, int64_t i, Vector<T> row, int64_t left) {
    store_bytes<T>(to + k * plane + i, __builtin_bit_cast(Places<T>, row), left);
  });
}

// As to_planes, to where the channels and pixels lie.
template <class T>
void write_pixels(const T* pixels, int64_t pitch, int64_t count, int64_t channels, T* to, const ImageLayout& layout) {
  if (layout.pixel == 1) return to_planes(pixels, pitch, count, channels, to, layout.channel);
  for (int64_t i = 0; i < count; ++i) store(to + i * layout.pixel, load(pixels + i * pitch), channels);
}

template <class T>
void write_bytes(const T* pixels, int64_t pitch, int64_t count, int64_t channels, uint8_t* to,
                 const ImageLayout& layout) {
  if (layout.pixel == 1) return to_planes_of_bytes(pixels, pitch, count, channels, to, layout.channel);
  for (int64_t i = 0; i < count; ++i)
    store_bytes<T>(to + i * layout.pixel, __builtin_bit_cast(Places<T>, load(pixels + i * pitch)), channels);
}

// Rows of the convolution, G vectors of output channels a pixel and `pitch` pixels a row, that become `pooled_rows`
// rows of y: activated, pooled and put where they belong. The rows are overwritten; `places` is room for as many
// vectors.
template <class T, int G>
void finish_rows(const ConvShape& s, T* rows, int64_t pitch, int64_t pooled_rows, int64_t channels, T* y,
                 uint8_t* y_places, T* places) {
  constexpr int64_t width = G * lanes<T>;
  const int64_t columns = s.pooled(1), count = pooled_rows * columns;
  const ImageLayout layout = s.y_layout();
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
    const int64_t own = least(lanes<T>, channels - g * lanes<T>), at = g * lanes<T> * layout.channel;
    write_pixels(rows + g * lanes<T>, width, count, own, y + at, layout);
    if (y_places != nullptr) write_bytes(places + g * lanes<T>, width, count, own, y_places + at, layout);
  }
}

// Gradients of y times the slopes that follow from it, for `count` channels and so many pixels from the element at
// `first` on, pixel by pixel, and the places of the largest.
template <class T>
void load_gradients(const ConvBackward<T>& d, int64_t first, int64_t count, int64_t pixels, T* gradients, T* places) {
  const ConvShape& s = d.shape;
  const ImageLayout layout = s.y_layout();
  const int64_t plane = layout.channel;
  const bool sloped = s.keeps_enough(), placed = s.keeps_places();
  for (int64_t p = 0; p < pixels && layout.pixel > 1; ++p) {
    const int64_t at = first + p * layout.pixel;
    Vector<T> gradient = load(d.dy + at, count);
    if (sloped) {
      const Vector<T> y = load(d.y + at, count);
      gradient = gradient * activation_slope(y, y, s.activation);
    }
    store(gradients + p * lanes<T>, gradient);
    if (placed) store(places + p * lanes<T>, __builtin_bit_cast(Vector<T>, load_bytes<T>(d.places + at, count)));
  }
  if (layout.pixel > 1) return;
  for (int64_t p = 0; p < pixels; p += lanes<T>) {
    const int64_t left = pixels - p;
    Vector<T> rows[lanes<T>], of_places[lanes<T>];
    RECURVE_UNROLL
    for (int64_t k = 0; k < lanes<T>; ++k) {
      const int64_t at = first + k * plane + p;
      rows[k] = k < count ? load(d.dy + at, left) : zero_vector<T>();
      if (!sloped || k >= count) continue;
      const Vector<T> y = load(d.y + at, left);
      rows[k] = rows[k] * activation_slope(y, y, s.activation);
    }
    transpose<T>(rows);
    for (int64_t k = 0; k < least(lanes<T>, left); ++k) store(gradients + (p + k) * lanes<T>, rows[k]);
    if (!placed) continue;
    RECURVE_UNROLL
    for (int64_t k = 0; k < lanes<T>; ++k)
      of_places[k] = k < count ? __builtin_bit_cast(Vector<T>, load_bytes<T>(d.places + first + k * plane + p, left))
                               : zero_vector<T>();
    transpose<T>(of_places);
    for (int64_t k = 0; k < least(lanes<T>, left); ++k) store(places + (p + k) * lanes<T>, of_places[k]);
  }
}

// What spread_row does where max pooling kept the places of windows of HEIGHT x WIDTH pixels.
template <class T, int HEIGHT, int WIDTH>
Vector<T> spread_places(int64_t columns, const T* gradients, const T* places, T* to, int64_t pitch, int64_t row) {
  Vector<T> sum = zero_vector<T>();
  for (int64_t j = 0; j < columns; ++j, to += WIDTH * pitch) {
    const Vector<T> gradient = load(gradients + j * lanes<T>);
    const auto best = __builtin_bit_cast(Places<T>, load(places + j * lanes<T>));
    RECURVE_UNROLL
    for (int r = 0; r < HEIGHT; ++r) {
      RECURVE_UNROLL
      for (int c = 0; c < WIDTH; ++c)
        store(to + r * row + c * pitch, best == r * WIDTH + c ? gradient : zero_vector<T>());
    }
    sum += gradient;
  }
  return sum;
}

// From what load_gradients gave for row i of y the gradients of the convolution, for one vector of channels; returns
// their sum. `pre` are the convolution's rows, read unless enough was kept.
template <class T>
Vector<T> spread_row(const ConvShape& s, int64_t i, const T* pre, int64_t pre_pitch, int64_t pre_row,
                     const T* gradients, const T* places, T* to, int64_t pitch, int64_t row) {
  const int64_t columns = s.pooled(1), height = s.window[0], width = s.window[1];
  const bool largest = s.pool == Pool::max, placed = s.keeps_places(), enough = s.keeps_enough();
  const T share = s.pool == Pool::average ? T(1) / static_cast<T>(height * width) : T(1);
  gradients += i * columns * lanes<T>, places += placed ? i * columns * lanes<T> : 0;
  if (placed && height == 2 && width == 2) return spread_places<T, 2, 2>(columns, gradients, places, to, pitch, row);
  Vector<T> sum = zero_vector<T>();
  for (int64_t j = 0; j < columns; ++j) {
    const Vector<T> gradient = load(gradients + j * lanes<T>) * share;
    Places<T> best{};
    if (placed)
      best = __builtin_bit_cast(Places<T>, load(places + j * lanes<T>));
    else if (largest)
      pool_vectors(s.pool, height, width, pre + j * width * pre_pitch, pre_row, pre_pitch, best,
                   [&](Vector<T> v) { return activate(v, s.activation); });
    for (int64_t r = 0; r < height; ++r)
      for (int64_t c = 0; c < width; ++c) {
        Vector<T> own = gradient;
        if (largest) own = best == static_cast<int32_t>(r * width + c) ? own : zero_vector<T>();
        if (!enough) {
          const Vector<T> v = load(pre + r * pre_row + (j * width + c) * pre_pitch);
          own = own * activation_slope(v, activate(v, s.activation), s.activation);
        }
        store(to + r * row + (j * width + c) * pitch, own);
        sum += own;
      }
  }
  return sum;
}

}  // namespace
}  // namespace recurve
