// Activation and pooling of rows of pixels, and back.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace recurve {
namespace {

template <class T>
using Places = typename Real<Vector<T>>::Bits;

template <class V>
RECURVE_INLINE V larger(V a, V b) {
  return ((b > a) | (b != b)) ? b : a;  // NaN wins, and of equals the first
}

// Lanes first, first + 2, ... of two vectors in a row.
template <class T, int first, int... L>
RECURVE_INLINE Vector<T> every_second(Vector<T> a, Vector<T> b, std::integer_sequence<int, L...>) {
  return shuffle<T>(a, b, std::integer_sequence<int, 2 * L + first...>{});
}

// The vector whose even lanes are from `even` and odd ones from `odd`, taken from lane `first` on.
template <class T, int first, int... L>
RECURVE_INLINE Vector<T> interleaved(Vector<T> even, Vector<T> odd, std::integer_sequence<int, L...>) {
  return shuffle<T>(even, odd, std::integer_sequence<int, first + L / 2 + L % 2 * static_cast<int>(lanes<T>)...>{});
}

// Stores the lanes of both in turn, `count` at most.
template <class T>
RECURVE_INLINE void store_pair(T* to, Vector<T> even, Vector<T> odd, int64_t count) {
  store(to, interleaved<T, 0>(even, odd, Lanes<T>{}), count);
  if (count > lanes<T>) store(to + lanes<T>, interleaved<T, lanes<T> / 2>(even, odd, Lanes<T>{}), count - lanes<T>);
}

template <class T>
struct Window2x2 {
  Vector<T> upper_left, upper_right, lower_left, lower_right;

  Window2x2(const T* upper, const T* lower) {
    const Vector<T> u0 = load(upper), u1 = load(upper + lanes<T>), l0 = load(lower), l1 = load(lower + lanes<T>);
    upper_left = every_second<T, 0>(u0, u1, Lanes<T>{}), upper_right = every_second<T, 1>(u0, u1, Lanes<T>{});
    lower_left = every_second<T, 0>(l0, l1, Lanes<T>{}), lower_right = every_second<T, 1>(l0, l1, Lanes<T>{});
  }
};

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

// The largest of each window of a row, the first of equals, and which of its four pixels that was.
template <class T>
RECURVE_INLINE Vector<T> largest(const Window2x2<T>& w, typename Real<Vector<T>>::Bits& place) {
  using Bits = typename Real<Vector<T>>::Bits;
  Vector<T> value = w.upper_left;
  const auto b = (w.upper_right > value) | (w.upper_right != w.upper_right);
  value = b ? w.upper_right : value;
  const auto c = (w.lower_left > value) | (w.lower_left != w.lower_left);
  value = c ? w.lower_left : value;
  const auto d = (w.lower_right > value) | (w.lower_right != w.lower_right);
  const Bits one = Bits{} + 1, two = Bits{} + 2, three = Bits{} + 3;
  place = d ? three : c ? two : b ? one : Bits{};
  return d ? w.lower_right : value;
}

// One row of y from window[0] rows of activated pixels, `pitch` apart. Whole vectors are read, past the rows' ends.
// Of max pooling also the place of the largest pixel in its window, unless `places` is null.
template <class T>
void pool_row(const ConvShape& s, const T* pixels, int64_t pitch, T* to, uint8_t* places) {
  const int64_t count = s.pooled(1);
  const bool is_max = s.pool == Pool::max;
  const T scale = is_max ? T(1) : T(1) / static_cast<T>(s.window[0] * s.window[1]);
  int64_t j = 0;
  if (s.window[0] == 2 && s.window[1] == 2) {
    for (; j < count; j += lanes<T>) {
      const Window2x2<T> w(pixels + 2 * j, pixels + pitch + 2 * j);
      if (places != nullptr) {
        typename Real<Vector<T>>::Bits place;
        store(to + j, largest(w, place), count - j);
        store_bytes<T>(places + j, place, count - j);
      } else if (is_max) {
        store(to + j, larger(larger(w.upper_left, w.upper_right), larger(w.lower_left, w.lower_right)), count - j);
      } else {
        store(to + j, (w.upper_left + w.upper_right + w.lower_left + w.lower_right) * scale, count - j);
      }
    }
  }
  for (; j < count; ++j) {
    const T* corner = pixels + j * s.window[1];
    T value = corner[0];
    int64_t place = 0;
    for (int64_t r = 0; r < s.window[0]; ++r)
      for (int64_t k = r == 0 ? 1 : 0; k < s.window[1]; ++k) {
        const T next = corner[r * pitch + k];
        const bool wins = is_max && (next > value || next != next);
        place = wins ? r * s.window[1] + k : place;
        value = !is_max ? value + next : wins ? next : value;
      }
    to[j] = value * scale;
    if (places != nullptr) places[j] = static_cast<uint8_t>(place);
  }
}

// Gradient of window[0] rows of activated pixels, `pitch` apart, from that of one row of y: to the largest of a window,
// the first of equals, or to all alike. Whole vectors are read, past the rows' ends.
template <class T>
void unpool_row(const ConvShape& s, const T* pixels, const T* dy, int64_t pitch, T* dpixels) {
  const int64_t count = s.pooled(1);
  const bool is_max = s.pool == Pool::max;
  const T scale = is_max ? T(1) : T(1) / static_cast<T>(s.window[0] * s.window[1]);
  int64_t j = 0;
  if (is_max && s.window[0] == 2 && s.window[1] == 2) {
    for (; j < count; j += lanes<T>) {
      const Window2x2<T> w(pixels + 2 * j, pixels + pitch + 2 * j);
      const Vector<T> g = load(dy + j, count - j), zero = zero_vector<T>();
      typename Real<Vector<T>>::Bits place;
      largest(w, place);
      const Vector<T> upper_left = place == 0 ? g : zero, upper_right = place == 1 ? g : zero;
      const Vector<T> lower_left = place == 2 ? g : zero, lower_right = place == 3 ? g : zero;
      store_pair(dpixels + 2 * j, upper_left, upper_right, 2 * (count - j));
      store_pair(dpixels + pitch + 2 * j, lower_left, lower_right, 2 * (count - j));
    }
  }
  for (; j < count; ++j) {
    const int64_t corner = j * s.window[1];
    int64_t best = corner;
    for (int64_t r = 0; r < s.window[0]; ++r)
      for (int64_t k = 0; k < s.window[1]; ++k) {
        const int64_t at = corner + r * pitch + k;
        dpixels[at] = is_max ? T(0) : dy[j] * scale;
        best = pixels[at] > pixels[best] || pixels[at] != pixels[at] ? at : best;
      }
    if (is_max) dpixels[best] = dy[j];
  }
}

template <class T>
void activate_pixels(const T* pre, int64_t count, Activation activation, T* to) {
  for (int64_t p = 0; p < count; p += lanes<T>) store(to + p, activate(load(pre + p), activation));
}

}  // namespace
}  // namespace recurve
