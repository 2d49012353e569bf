// The backward pass of a max-pooled convolution: one pixel of each window has a gradient, and only those are
// multiplied.
//
// Images are copied with their channels side by side. What a row of the kernel reads then lies in a row in memory, so
// that a gradient meets it in whole vectors, wherever in its window it stands. Gradients are listed per output channel,
// each as its value and the place of its pixel; lists reach over as many rows or images as the second-level cache
// holds.
#pragma once

#include "conv_grid.h"
#include "conv_pool.h"

namespace recurve {
namespace {

constexpr int64_t windows_bytes = 384 * 1024;  // of the images' rows that a list reaches over

// Rows and vectors of the kernel that stay in registers together.
constexpr int tile_vectors = RECURVE_VECTOR_REGISTERS == 32 ? 24 : 12;
constexpr int tile_width = tile_vectors / 3;

constexpr bool is_tile_rows(int64_t rows) { return rows <= 3 || rows == 5 || rows == 7; }

template <int V>
constexpr int most_tile_rows = tile_vectors / V >= 7   ? 7
                               : tile_vectors / V >= 5 ? 5
                                                       : 3;

template <int V, int R, class F>
RECURVE_INLINE void call_tile_of(int64_t rows, const F& f) {
  if constexpr (is_tile_rows(R)) {
    if (rows == R) return f.template operator()<R, V>();
  }
  if constexpr (R > 1) call_tile_of<V, R - 1>(rows, f);
}

template <int V, class F>
RECURVE_INLINE void for_tiles_of(int64_t rows, int64_t vectors, int64_t v, const F& f) {
  if (vectors == V) {
    for (int64_t r = 0, height; r < rows; r += height) {
      height = least(most_tile_rows<V>, rows - r);
      if (!is_tile_rows(height)) height = 3;
      call_tile_of<V, most_tile_rows<V>>(height, [&]<int R, int W>() { f.template operator()<R, W>(r, v); });
    }
  } else if constexpr (V > 1) {
    for_tiles_of<V - 1>(rows, vectors, v, f);
  }
}

// Calls f.template operator()<R, V>(row, vector) over all of a kernel's rows and vectors, in tiles.
template <class F>
RECURVE_INLINE void for_tiles(int64_t rows, int64_t vectors, const F& f) {
  const int64_t blocks = divide_up(vectors, tile_width);
  for (int64_t v = 0, i = 0; i < blocks; ++i) {
    const int64_t width = (vectors - v) / (blocks - i);
    for_tiles_of<tile_width>(rows, width, v, f);
    v += width;
  }
}

// Gradients of one output channel that are not zero, and where their pixels' channels begin.
template <class T>
struct Gradients {
  T* value;
  int32_t* place;
  int64_t count;
};

// dweight (R rows, V vectors) += the sum of the gradients times the pixels they meet. Few sums would wait for each
// other: then S of each run beside each other, and `count` is a multiple of S.
template <class T, int R, int V, int S>
void add_outer_products(const Gradients<T>& g, const T* x, int64_t row, T* dweight, int64_t dweight_row) {
  Vector<T> sums[S][R][V] = {};
  for (int64_t i = 0; i < g.count; i += S) {
    RECURVE_UNROLL
    for (int s = 0; s < S; ++s) {
      const T value = g.value[i + s];
      const T* at = x + g.place[i + s];
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) {
        RECURVE_UNROLL
        for (int v = 0; v < V; ++v) sums[s][r][v] += load(at + r * row + v * lanes<T>) * value;
      }
    }
  }
  RECURVE_UNROLL
  for (int r = 0; r < R; ++r) {
    RECURVE_UNROLL
    for (int v = 0; v < V; ++v) {
      T* to = dweight + r * dweight_row + v * lanes<T>;
      Vector<T> sum = sums[0][r][v];
      RECURVE_UNROLL
      for (int s = 1; s < S; ++s) sum += sums[s][r][v];
      store(to, load(to) + sum);
    }
  }
}

// dx += each gradient times the weights (R rows, V vectors), around its pixel. Neighbours in the list reach the same
// pixels, and what was just stored cannot be loaded at once: four parts of the list take turns. `count` is a multiple
// of four.
template <class T, int R, int V>
void scatter_gradients(const Gradients<T>& g, const T* weight, int64_t weight_row, T* dx, int64_t row) {
  Vector<T> w[R][V];
  RECURVE_UNROLL
  for (int r = 0; r < R; ++r) {
    RECURVE_UNROLL
    for (int v = 0; v < V; ++v) w[r][v] = load(weight + r * weight_row + v * lanes<T>);
  }
  const int64_t part = g.count / 4;
  for (int64_t i = 0; i < part; ++i)
    for (int64_t j = i; j < g.count; j += part) {
      T* at = dx + g.place[j];
      const T value = g.value[j];
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) {
        RECURVE_UNROLL
        for (int v = 0; v < V; ++v) {
          T* to = at + r * row + v * lanes<T>;
          store(to, load(to) + w[r][v] * value);
        }
      }
    }
}

// A gradient, and where the weights begin that it is multiplied with.
template <class T>
struct Weighted {
  T value;
  int32_t place;
};

constexpr int64_t gathered_outputs = 32;  // their weights stay in the first-level cache

// For each window of 2 x 2 pixels in a row, the gradients of up to gathered_outputs output channels, by the pixel that
// they stand at.
template <class T>
struct Sorted {
  Scratch<Weighted<T>> of;  // (windows, 4, gathered_outputs)
  Scratch<int32_t> counts;  // (windows, 4)

  explicit Sorted(int64_t windows) : of(windows * 4 * gathered_outputs), counts(windows * 4) {}

  void add(int64_t window, int pixel, T value, int32_t place) const {
    const int64_t list = window * 4 + pixel;
    int32_t& count = counts[list];
    of[list * gathered_outputs + count] = {value, place};
    count += value != 0;
  }
};

// dx += what the gradients of one window's `pixel` give to V vectors of channels of the (K + 1)^2 pixels that they
// reach.
template <class T, int K, int V, int pixel>
RECURVE_INLINE void gather_pixel(const Weighted<T>* list, int64_t count, const T* weight,
                                 Vector<T> (&sums)[K + 1][K + 1][V]) {
  for (int64_t i = 0; i < count; ++i) {
    const T value = list[i].value;
    const T* w = weight + list[i].place;
    RECURVE_UNROLL
    for (int r = 0; r < K; ++r) {
      RECURVE_UNROLL
      for (int c = 0; c < K; ++c) {
        RECURVE_UNROLL
        for (int v = 0; v < V; ++v)
          sums[r + pixel / 2][c + pixel % 2][v] += load(w + ((r * K + c) * V + v) * lanes<T>) * value;
      }
    }
  }
}

template <class T, int K, int V>
void gather_gradients(const Sorted<T>& sorted, int64_t windows, const T* weight, T* dx, int64_t row, int64_t pitch) {
  for (int64_t j = 0; j < windows; ++j, dx += 2 * pitch) {
    Vector<T> sums[K + 1][K + 1][V];
    const Weighted<T>* list = sorted.of + j * 4 * gathered_outputs;
    const int32_t* counts = sorted.counts + j * 4;
    RECURVE_UNROLL
    for (int r = 0; r <= K; ++r) {
      RECURVE_UNROLL
      for (int c = 0; c <= K; ++c) {
        RECURVE_UNROLL
        for (int v = 0; v < V; ++v) sums[r][c][v] = load(dx + r * row + c * pitch + v * lanes<T>);
      }
    }
    gather_pixel<T, K, V, 0>(list, counts[0], weight, sums);
    gather_pixel<T, K, V, 1>(list + gathered_outputs, counts[1], weight, sums);
    gather_pixel<T, K, V, 2>(list + 2 * gathered_outputs, counts[2], weight, sums);
    gather_pixel<T, K, V, 3>(list + 3 * gathered_outputs, counts[3], weight, sums);
    RECURVE_UNROLL
    for (int r = 0; r <= K; ++r) {
      RECURVE_UNROLL
      for (int c = 0; c <= K; ++c) {
        RECURVE_UNROLL
        for (int v = 0; v < V; ++v) store(dx + r * row + c * pitch + v * lanes<T>, sums[r][c][v]);
      }
    }
  }
}

// Whether a product with zero is zero for all of them.
template <class T>
bool all_finite(const T* values, int64_t count) {
  Vector<T> sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes<T> <= count; i += 4 * lanes<T>)
    for (int k = 0; k < 4; ++k) sums[k] += load(values + i + k * lanes<T>) * T(0);
  for (; i < count; i += lanes<T>) sums[0] += load(values + i, count - i) * T(0);
  const Vector<T> sum = sums[0] + sums[1] + sums[2] + sums[3];
  for (int64_t k = 0; k < lanes<T>; ++k)
    if (sum[k] != 0) return false;
  return true;
}

// The padded images of one group of channels with the channels of a pixel side by side, and the weights to match.
template <class T>
struct Windows {
  const ConvBackward<T>& d;
  const Grid& grid;
  int64_t pitch, row, image;    // elements from a pixel, a row, an image to the next
  int64_t vectors, weight_row;  // of a row of the kernel
  int64_t weight_size;          // of one output channel
  int64_t down, across;         // elements from an output pixel to the one below and to the next
  int64_t places[256];          // of the pixels of a window
  Scratch<int32_t> corners;     // (pooled rows and columns): places of the windows
  Scratch<T> weights;           // (E, O, kernel rows, weight_row) if dx is wanted
  bool finite;                  // all weights are
  int gathered;                 // vectors of channels whose gradients gather in registers; 0: gradients scatter

  Windows(const ConvBackward<T>& d_, const Grid& grid_)
      : d(d_),
        grid(grid_),
        pitch(grid_.inputs == 1 || (d_.dx == nullptr && grid_.inputs < lanes<T>) ? grid_.inputs
                                                                                 : whole_vectors<T>(grid_.inputs)),
        row(grid.width * pitch),
        image(grid.height * row),
        vectors(divide_up(d_.shape.kernel[1] * pitch, lanes<T>)),
        weight_row(vectors * lanes<T>),
        weight_size(d_.shape.kernel[0] * weight_row),
        down(d_.shape.stride[0] * row),
        across(d_.shape.stride[1] * pitch),
        corners(d_.shape.pooled(0) * d_.shape.pooled(1)),
        weights(serves() && d_.dx != nullptr ? d_.shape.models * d_.shape.outputs * weight_size : 0),
        finite(true),
        gathered(vectors_to_gather()) {
    const ConvShape& s = d.shape;
    if (!serves()) return;
    for (int64_t i = 0; i < s.window[0] * s.window[1]; ++i)
      places[i] = i / s.window[1] * down + i % s.window[1] * across;
    for (int64_t i = 0; i < s.pooled(0); ++i)
      for (int64_t j = 0; j < s.pooled(1); ++j)
        corners[i * s.pooled(1) + j] = static_cast<int32_t>(i * s.window[0] * down + j * s.window[1] * across);
    if (d.dx == nullptr) return;
    finite = all_finite(d.weight, s.models * s.outputs * grid.depth);
    __builtin_memset(weights, 0, s.models * s.outputs * weight_size * sizeof(T));
    for (int64_t o = 0; o < s.models * s.outputs; ++o)
      for (int64_t c = 0; c < grid.inputs; ++c)
        for (int64_t k = 0; k < grid.taps; ++k)
          weights[gathered > 0 ? gathered_place(o, k, c) : weight_place(o, c * grid.taps + k)] =
              d.weight[(o * grid.inputs + c) * grid.taps + k];
  }

  // With square kernels up to 3 x 3 over windows of 2 x 2, what a window's gradients reach fits into registers.
  int vectors_to_gather() const {
    const ConvShape& s = d.shape;
    const int64_t size = s.kernel[0], all = pitch / lanes<T>;
    if (!serves() || d.dx == nullptr || all == 0 || size > 3 || s.kernel[1] != size) return 0;
    if (s.window[0] != 2 || s.window[1] != 2 || s.dilation[0] != 1 || s.stride[0] != 1 || s.stride[1] != 1) return 0;
    return size == 1 && all % 4 == 0 ? 4 : size <= 2 && all % 2 == 0 ? 2 : 1;
  }

  // Of the weight of tap k and channel c: what gathers together is side by side, then an output's taps, then outputs.
  int64_t gathered_place(int64_t o, int64_t k, int64_t c) const {
    const int64_t width = gathered * lanes<T>, group = o / grid.outputs;
    return group * grid.outputs * weight_size +
           ((c / width * grid.outputs + o % grid.outputs) * grid.taps + k) * width + c % width;
  }

  // Of element k of output channel o's weights.
  int64_t weight_place(int64_t o, int64_t k) const {
    const int64_t tap = k % grid.taps, width = d.shape.kernel[1];
    return o * weight_size + tap / width * weight_row + tap % width * pitch + k / grid.taps;
  }

  bool serves() const {
    return !d.shape.channels_last && d.shape.keeps_places() && d.shape.dilation[1] == 1 && image < (int64_t{1} << 30);
  }

  // Images, or else rows of y of one image, that a list reaches over.
  int64_t images_at_once() const { return most(1, windows_bytes / bytes(image)); }
  int64_t rows_at_once() const {
    const ConvShape& s = d.shape;
    const int64_t extent = (s.kernel[0] - 1) * s.dilation[0];
    return most(1, (windows_bytes / bytes(row) - extent) / (s.window[0] * s.stride[0]));
  }
  int64_t bytes(int64_t elements) const {
    return elements * static_cast<int64_t>(sizeof(T)) * (d.dx == nullptr ? 1 : 2);
  }

  // One image's channels side by side; the padding is there already.
  void pack(const T* x, T* to) const {
    const ConvShape& s = d.shape;
    const int64_t plane = s.height * s.width;
    for (int64_t y = 0; y < s.height; ++y) {
      T* pixels = to + (y + s.padding[0]) * row + s.padding[1] * pitch;
      const T* from = x + y * s.width;
      if (pitch == 1)
        copy_row(from, s.width, pixels);
      else if (pitch < lanes<T>)
        for (int64_t i = 0; i < s.width; ++i)
          for (int64_t c = 0; c < pitch; ++c) pixels[i * pitch + c] = from[c * plane + i];
      else
        for (int64_t c = 0; c < pitch; c += lanes<T>)
          transpose_rows(from + c * plane, plane, least(lanes<T>, grid.inputs - c), s.width, pixels + c, pitch);
    }
  }

  // One image's gradients back into planes of channels.
  void unpack(const T* from, T* dx) const {
    const ConvShape& s = d.shape;
    for (int64_t y = 0; y < s.height && pitch == 1; ++y)
      copy_row(from + (y + s.padding[0]) * row + s.padding[1], s.width, dx + y * s.width);
    for (int64_t y = 0; y < s.height && pitch > 1; ++y)
      for (int64_t i = 0; i < s.width; i += lanes<T>)
        for (int64_t c = 0; c < grid.inputs; c += lanes<T>) {
          const T* pixels = from + (y + s.padding[0]) * row + (i + s.padding[1]) * pitch + c;
          const int64_t count = s.width - i;
          Vector<T> rows[lanes<T>];
          for (int k = 0; k < lanes<T>; ++k) rows[k] = k < count ? load(pixels + k * pitch) : zero_vector<T>();
          transpose<T>(rows);
          for (int64_t k = 0; k < least(lanes<T>, grid.inputs - c); ++k)
            store(dx + ((c + k) * s.height + y) * s.width + i, rows[k], count);
        }
  }

  // Appends rows [first, last) of one image's gradients, from y, places and dy of that image and output channel;
  // `base` is the image's place. Returns their sum.
  T list(const T* y, const uint8_t* places_of, const T* dy, int64_t first, int64_t last, int64_t base,
         Gradients<T>& to) const {
    const ConvShape& s = d.shape;
    const int64_t width = s.pooled(1), start = first * width, count = (last - first) * width;
    const uint8_t* at = places_of + start;
    const int32_t* corner = corners + start;
    int32_t* place = to.place + to.count;
    const auto image_place = static_cast<int32_t>(base), below = static_cast<int32_t>(down);
    const auto beside = static_cast<int32_t>(across);
    if (s.window[0] == 2 && s.window[1] == 2)
      for (int64_t j = 0; j < count; ++j)
        place[j] = image_place + corner[j] + (at[j] >> 1) * below + (at[j] & 1) * beside;
    else
      for (int64_t j = 0; j < count; ++j) place[j] = static_cast<int32_t>(image_place + corner[j] + places[at[j]]);
    const T sum = multiply_slopes_of(y + start, dy + start, count, to.value + to.count);
    to.count += count;
    return sum;
  }

  // Drops zeros, and fills up with some to a multiple of 4.
  void compress(Gradients<T>& g) const {
    if (vectors * d.shape.kernel[0] * (d.dx != nullptr && gathered == 0 ? 2 : 1) > 12) {
      int64_t count = 0;
      for (int64_t i = 0; i < g.count; ++i) {
        const T value = g.value[i];
        g.value[count] = value;
        g.place[count] = g.place[i];
        count += value != 0;
      }
      g.count = count;
    }
    for (; g.count % 4 != 0; ++g.count) g.value[g.count] = 0, g.place[g.count] = 0;
  }

  void multiply(const Gradients<T>& g, const T* x, T* dweight) const {
    const int64_t apart = d.shape.dilation[0] * row;
    for_tiles(d.shape.kernel[0], vectors, [&]<int R, int V>(int64_t r, int64_t v) {
      constexpr int S = R * V <= 3 ? 4 : R * V <= 6 ? 2 : 1;
      add_outer_products<T, R, V, S>(g, x + r * apart + v * lanes<T>, apart, dweight + r * weight_row + v * lanes<T>,
                                     weight_row);
    });
  }

  // Adds to one image's dx what its gradients in row i of y give.
  void gather(const T* y, const uint8_t* places_of, const T* dy, int64_t i, const T* weight, const Sorted<T>& sorted,
              T* values, T* dx) const {
    const ConvShape& s = d.shape;
    const int64_t width = s.pooled(1), pooled = s.pooled(0) * width, size = grid.taps * gathered * lanes<T>;
    for (int64_t first = 0; first < grid.outputs; first += gathered_outputs) {
      const int64_t count = least(gathered_outputs, grid.outputs - first);
      __builtin_memset(sorted.counts, 0, width * 4 * sizeof(int32_t));
      for (int64_t o = first; o < first + count; ++o) {
        const int64_t at = o * pooled + i * width;
        multiply_slopes_of(y + at, dy + at, width, values);
        for (int64_t j = 0; j < width; ++j)
          sorted.add(j, places_of[at + j], values[j], static_cast<int32_t>((o - first) * size));
      }
      for (int64_t c = 0; c < pitch; c += gathered * lanes<T>) {
        const T* w = weight + (c / (gathered * lanes<T>)*grid.outputs + first) * size;
        T* to = dx + 2 * i * row + c;
        if (grid.taps == 9)
          gather_gradients<T, 3, 1>(sorted, width, w, to, row, pitch);
        else if (grid.taps == 4)
          gathered == 2 ? gather_gradients<T, 2, 2>(sorted, width, w, to, row, pitch)
                        : gather_gradients<T, 2, 1>(sorted, width, w, to, row, pitch);
        else if (gathered == 4)
          gather_gradients<T, 1, 4>(sorted, width, w, to, row, pitch);
        else
          gathered == 2 ? gather_gradients<T, 1, 2>(sorted, width, w, to, row, pitch)
                        : gather_gradients<T, 1, 1>(sorted, width, w, to, row, pitch);
      }
    }
  }

  // values = dy times the slopes at y, `count` of them rounded up to vectors; returns their sum.
  T multiply_slopes_of(const T* y, const T* dy, int64_t count, T* values) const {
    Vector<T> sums = zero_vector<T>();
    for (int64_t j = 0; j < count; j += lanes<T>) {
      const Vector<T> kept = load(y + j, count - j);
      const Vector<T> value = load(dy + j, count - j) * activation_slope(kept, kept, d.shape.activation);
      store(values + j, value);
      sums += value;
    }
    T sum = 0;
    for (int64_t i = 0; i < lanes<T>; ++i) sum += sums[i];
    return sum;
  }

  void scatter(const Gradients<T>& g, const T* weight, T* dx) const {
    const int64_t apart = d.shape.dilation[0] * row;
    for_tiles(d.shape.kernel[0], vectors, [&]<int R, int V>(int64_t r, int64_t v) {
      scatter_gradients<T, R, V>(g, weight + r * weight_row + v * lanes<T>, weight_row, dx + r * apart + v * lanes<T>,
                                 apart);
    });
  }
};

// What one task works in.
template <class T>
struct WindowsScratch {
  int64_t images;
  Scratch<T> x, dx, values;
  Scratch<int32_t> places;
  Sorted<T> sorted;

  WindowsScratch(const Windows<T>& w, int64_t most_images)
      : images(least(w.images_at_once(), most_images)),
        x(images * w.image + w.weight_row),
        dx(w.d.dx == nullptr ? 0 : images * w.image + w.weight_row),
        values(images * w.d.shape.pooled(0) * w.d.shape.pooled(1) + 4 * lanes<T>),
        places(images * w.d.shape.pooled(0) * w.d.shape.pooled(1) + 4),
        sorted(w.gathered > 0 ? w.d.shape.pooled(1) : 0) {
    __builtin_memset(x.get(), 0, (images * w.image + w.weight_row) * sizeof(T));
  }
};

// Gradients of `count` images of a model and group from `image` on: adds to dweight (outputs, weight_size) and dbias
// (outputs), fills dx. Returns whether leaving out zeros, and multiplying with those that fill up vectors, did no harm.
template <class T>
bool backward_windows(const Windows<T>& w, const WindowsScratch<T>& scratch, int64_t model, int64_t image,
                      int64_t count, int64_t group, T* dweight, T* dbias) {
  const ConvBackward<T>& d = w.d;
  const ConvShape& s = d.shape;
  const Grid& grid = w.grid;
  const int64_t plane = s.height * s.width, pooled = s.pooled(0) * s.pooled(1);
  const int64_t rows = count > 1 ? s.pooled(0) : w.rows_at_once();
  bool finite = true;
  if (d.dweight != nullptr)
    for (int64_t b = 0; b < count; ++b) {
      const int64_t source = s.shared ? (image + b) % s.batch : image + b;
      w.pack(d.x + (source * s.channels + group * grid.inputs) * plane, scratch.x + b * w.image);
      finite = finite && all_finite(scratch.x + b * w.image, w.image);
    }
  if (d.dx != nullptr) __builtin_memset(scratch.dx.get(), 0, count * w.image * sizeof(T));
  for (int64_t first = 0; first < s.pooled(0); first += rows)
    for (int64_t o = 0; o < grid.outputs; ++o) {
      const int64_t output = group * grid.outputs + o;
      Gradients<T> g{scratch.values, scratch.places, 0};
      for (int64_t b = 0; b < count; ++b) {
        const int64_t at = ((image + b) * s.outputs + output) * pooled;
        const T sum =
            w.list(d.y + at, d.places + at, d.dy + at, first, least(s.pooled(0), first + rows), b * w.image, g);
        dbias[o] += sum;
        if (w.pitch == 1 && sum - sum != 0) finite = false;
      }
      w.compress(g);
      if (d.dweight != nullptr) w.multiply(g, scratch.x, dweight + o * w.weight_size);
      if (d.dx != nullptr && w.gathered == 0)
        w.scatter(g, w.weights + (model * s.outputs + output) * w.weight_size, scratch.dx);
    }
  for (int64_t b = 0; w.gathered > 0 && b < count; ++b)
    for (int64_t i = 0; i < s.pooled(0); ++i) {
      const int64_t at = ((image + b) * s.outputs + group * grid.outputs) * pooled;
      w.gather(d.y + at, d.places + at, d.dy + at, i,
               w.weights + (model * s.outputs + group * grid.outputs) * w.weight_size, scratch.sorted, scratch.values,
               scratch.dx + b * w.image);
    }
  if (d.dx != nullptr)
    for (int64_t b = 0; b < count; ++b)
      w.unpack(scratch.dx + b * w.image, d.dx + ((image + b) * s.channels + group * grid.inputs) * plane);
  return finite;
}

}  // namespace
}  // namespace recurve
