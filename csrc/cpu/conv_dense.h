// The backward pass of a convolution where every pixel may have a gradient: without pooling, averaged, or where the
// slopes need the convolution anew.
//
// Gradients of an image's pixels are kept with output channels side by side, in a grid with a border that the kernel
// reaches over. The weights' gradient is a product of input pixels with them; the input's is a convolution of the grid,
// with input channels side by side, for each phase of the stride apart.
#pragma once

#include "conv_forward.h"

namespace recurve {
namespace {

template <class T>
struct DensePlan {
  const ConvBackward<T>& d;
  ForwardPlan<T> forward;
  const Grid& grid;
  int64_t pitch;            // from a pixel's output channels to the next pixel's
  int64_t lead[2], row;     // of the grid of gradients: border before, elements of a row
  int64_t height;           // of that grid
  OutputBlocks blocks;      // of input channels
  int64_t phases;           // of the stride, both axes
  Scratch<int64_t> depths;  // of each phase: taps that meet it times outputs
  Scratch<int64_t> starts;  // (phases): elements of depth before
  Scratch<int64_t> offsets;
  Scratch<T> weights, zeros;  // (E, groups, blocks, depth of all phases, width of the block)

  DensePlan(const ConvBackward<T>& d_, const ConvForward<T>& again, const Parallel& parallel)
      : d(d_),
        forward(again, parallel),
        grid(forward.grid),
        pitch(forward.blocks.vectors * lanes<T>),
        blocks(divide_up(grid.inputs, lanes<T>)),
        phases(d_.shape.stride[0] * d_.shape.stride[1]),
        depths(phases),
        starts(phases),
        offsets(grid.taps * grid.outputs),
        weights(d_.dx == nullptr ? 0 : sets() * blocks.vectors * lanes<T> * grid.taps * grid.outputs),
        zeros(3 * lanes<T>) {
    const ConvShape& s = d.shape;
    for (int axis = 0; axis < 2; ++axis)
      lead[axis] = divide_up((s.kernel[axis] - 1) * s.dilation[axis], s.stride[axis]);
    height = lead[0] + most(grid.rows, (grid.height - 1) / s.stride[0] + 1);
    row = (lead[1] + most(grid.columns, (grid.width - 1) / s.stride[1] + 1)) * pitch;
    __builtin_memset(zeros, 0, 3 * lanes<T> * sizeof(T));
    int64_t start = 0;
    for (int64_t phase = 0; phase < phases; ++phase) {
      starts[phase] = start;
      for (int64_t tap = 0; tap < grid.taps; ++tap)
        if (meets(phase, tap))
          for (int64_t o = 0; o < grid.outputs; ++o)
            offsets[start++] = step(0, phase, tap) * row + step(1, phase, tap) * pitch + o;
      depths[phase] = start - starts[phase];
    }
    if (d.dx == nullptr) return;
    parallel_for(parallel, sets() * blocks.count,
                 [&](int64_t task) { pack(task / blocks.count, task % blocks.count); });
  }

  int64_t sets() const { return d.shape.models * d.shape.groups; }

  // How far a tap reaches back from a pixel of a phase, in pixels of the input.
  int64_t reach(int axis, int64_t phase, int64_t tap) const {
    const ConvShape& s = d.shape;
    return axis == 0 ? phase / s.stride[1] - tap / s.kernel[1] * s.dilation[0]
                     : phase % s.stride[1] - tap % s.kernel[1] * s.dilation[1];
  }
  bool meets(int64_t phase, int64_t tap) const {
    return reach(0, phase, tap) % d.shape.stride[0] == 0 && reach(1, phase, tap) % d.shape.stride[1] == 0;
  }
  // The same in pixels of the grid of gradients.
  int64_t step(int axis, int64_t phase, int64_t tap) const { return reach(axis, phase, tap) / d.shape.stride[axis]; }

  const T* weights_of(int64_t set, int64_t block, int64_t phase) const {
    const int64_t width = blocks.width(block) * lanes<T>;
    return weights + (set * blocks.vectors + blocks.first(block)) * lanes<T> * grid.taps * grid.outputs +
           starts[phase] * width;
  }

  void pack(int64_t set, int64_t block) const {
    const int64_t width = blocks.width(block) * lanes<T>, first = blocks.first(block) * lanes<T>;
    T* to = const_cast<T*>(weights_of(set, block, 0));
    for (int64_t phase = 0; phase < phases; ++phase)
      for (int64_t tap = 0; tap < grid.taps; ++tap) {
        if (!meets(phase, tap)) continue;
        for (int64_t o = 0; o < grid.outputs; ++o, to += width)
          for (int64_t c = 0; c < width; ++c)
            to[c] = first + c < grid.inputs
                        ? d.weight[((set * grid.outputs + o) * grid.inputs + first + c) * grid.taps + tap]
                        : T(0);
      }
  }
};

// dweight (depth, pitch) += the products of an image's pixels with the gradients, for R elements of a kernel and G
// vectors of output channels at a time.
template <class T, int G, bool UNIT>
void add_weight_gradient(const DensePlan<T>& plan, const T* x, const T* gradients, T* dweight) {
  const ConvShape& s = plan.d.shape;
  const Grid& grid = plan.grid;
  for_row_tiles<tile_pixels<G>>(grid.depth, [&]<int R>(int64_t k0) {
    Vector<T> sums[R][G] = {};
    for (int64_t i = 0; i < grid.rows; ++i) {
      const T *a[R], *row = gradients + i * plan.row;
      RECURVE_UNROLL
      for (int r = 0; r < R; ++r) a[r] = x + plan.forward.offsets[k0 + r] + i * s.stride[0] * grid.width;
      const int64_t step = UNIT ? 1 : s.stride[1];
      accumulate_blocks<T, R, G>(
          sums, [&](int r, int64_t j) { return a[r][j * step]; }, [&](int64_t j) { return row + j * plan.pitch; },
          grid.columns);
    }
    for (int r = 0; r < R; ++r)
      for (int g = 0; g < G; ++g) {
        T* to = dweight + (k0 + r) * plan.pitch + g * lanes<T>;
        store(to, load(to) + sums[r][g]);
      }
  });
}

// dx of one image and group from the grid of its gradients.
template <class T>
void input_gradient(const DensePlan<T>& plan, int64_t set, const T* gradients, T* dx) {
  const ConvShape& s = plan.d.shape;
  const int64_t row_bytes = s.width * 3 * lanes<T> * static_cast<int64_t>(sizeof(T));
  const int64_t band = most(1, least(s.height, rows_bytes / row_bytes));
  Scratch<T> rows(band * s.width * 3 * lanes<T>);
  for (int64_t block = 0; block < plan.blocks.count; ++block)
    plan.blocks.with_width(block, [&]<int G>() {
      constexpr int64_t width = G * lanes<T>;
      for (int64_t first = 0; first < s.height; first += band) {
        const int64_t count = least(band, s.height - first);
        for (int64_t phase = 0; phase < plan.phases; ++phase) {
          const T* weights = plan.weights_of(set, block, phase);
          const int64_t *offsets = plan.offsets + plan.starts[phase], depth = plan.depths[phase];
          const int64_t down = phase / s.stride[1], across = phase % s.stride[1];
          const int64_t column = remainder(across - s.padding[1], s.stride[1]);  // the first of this phase
          const int64_t pixels = divide_up(s.width - column, s.stride[1]);
          for (int64_t k = 0; k == 0 || k < depth; k += product_block)
            for (int64_t r = remainder(down - s.padding[0] - first, s.stride[0]); r < count; r += s.stride[0]) {
              const T* from = gradients + (first + r + s.padding[0]) / s.stride[0] * plan.row +
                              (column + s.padding[1]) / s.stride[1] * plan.pitch;
              if (pixels > 0)
                add_to_row<T, G, false>(from, plan.pitch, offsets, k, least(depth, k + product_block), weights,
                                        plan.zeros.get(), pixels, rows + (r * s.width + column) * width,
                                        s.stride[1] * width);
            }
        }
        for (int64_t g = 0; g < G; ++g) {
          const int64_t c = (plan.blocks.first(block) + g) * lanes<T>, plane = s.height * s.width;
          to_planes(rows + g * lanes<T>, width, count * s.width, least(lanes<T>, plan.grid.inputs - c),
                    dx + c * plane + first * s.width, plane);
        }
      }
    });
}

// What one task works in. The border of the grid stays zero.
template <class T>
struct DenseScratch {
  Scratch<T> padded, grid, pre, gradients, places;

  explicit DenseScratch(const DensePlan<T>& p)
      : padded(p.grid.inputs * p.grid.plane()),
        grid(p.height * p.row),
        pre(p.d.shape.keeps_enough() ? 0 : p.d.shape.window[0] * p.grid.columns * 3 * lanes<T>),
        gradients(p.d.shape.pooled(0) * p.d.shape.pooled(1) * lanes<T>),
        places(p.d.shape.keeps_places() ? p.d.shape.pooled(0) * p.d.shape.pooled(1) * lanes<T> : 0) {
    __builtin_memset(grid.get(), 0, p.height * p.row * sizeof(T));
  }
};

// Gradients of one image and group: adds to dweight (depth, pitch) and dbias (pitch), fills dx.
template <class T>
void dense_backward(const DensePlan<T>& plan, const DenseScratch<T>& t, int64_t image, int64_t group, T* dweight,
                    T* dbias) {
  const ConvBackward<T>& d = plan.d;
  const ConvShape& s = d.shape;
  const Grid& grid = plan.grid;
  const int64_t set = image / s.batch * s.groups + group, pooled = s.pooled(0) * s.pooled(1);
  const T* x = plan.forward.image(image, group);
  if (plan.forward.padded) {
    pad_rows(s, grid, x, 0, grid.height, t.padded.get());
    x = t.padded;
  }
  T* gradients = t.grid + plan.lead[0] * plan.row + plan.lead[1] * plan.pitch;
  for (int64_t block = 0; block < plan.forward.blocks.count; ++block)
    plan.forward.blocks.with_width(block, [&]<int G>() {
      constexpr int64_t width = G * lanes<T>;
      const T *weights = plan.forward.weights_of(set, block), *bias = plan.forward.biases_of(set, block);
      for (int64_t g = 0; g < G; ++g) {
        const int64_t o = (plan.forward.blocks.first(block) + g) * lanes<T>;
        load_gradients(d, (image * s.outputs + group * grid.outputs + o) * pooled, least(lanes<T>, grid.outputs - o),
                       pooled, t.gradients.get(), t.places.get());
        for (int64_t i = 0; i < s.pooled(0); ++i) {
          const int64_t first = i * s.window[0];
          if (!s.keeps_enough()) convolve_rows<T, G>(plan.forward, x, weights, bias, first, s.window[0], t.pre.get());
          const Vector<T> sum = spread_row(s, i, t.pre + g * lanes<T>, width, grid.columns * width, t.gradients.get(),
                                           t.places.get(), gradients + first * plan.row + o, plan.pitch, plan.row);
          store(dbias + o, load(dbias + o) + sum);
        }
      }
    });
  if (d.dweight != nullptr)
    for (int64_t block = 0; block < plan.forward.blocks.count; ++block)
      plan.forward.blocks.with_width(block, [&]<int G>() {
        const int64_t o = plan.forward.blocks.first(block) * lanes<T>;
        if (s.stride[1] == 1)
          add_weight_gradient<T, G, true>(plan, x, gradients + o, dweight + o);
        else
          add_weight_gradient<T, G, false>(plan, x, gradients + o, dweight + o);
      });
  if (d.dx != nullptr)
    input_gradient(plan, set, gradients, d.dx + (image * s.channels + group * grid.inputs) * s.height * s.width);
}

}  // namespace
}  // namespace recurve
