// The convolution block: convolution, bias, activation and pooling in one pass, and back.
//
// The backward pass goes by Winograd's algorithm where that is asked for and serves. Else, where max pooling has kept
// which pixel of a window was the largest, only these pixels' gradients are multiplied; else those of all pixels.
#pragma once

#include "conv_dense.h"
#include "conv_depthwise.h"
#include "conv_forward.h"
#include "conv_planes.h"
#include "conv_windows.h"
#include "conv_winograd_backward.h"

namespace recurve {
namespace {

template <class T>
void conv_forward(const ConvForward<T>& f, const Parallel& parallel) {
  if (f.shape.depthwise()) return depthwise_forward(f, parallel);
  const Grid grid(f.shape);
  if (!f.winograd && planes_serve<T>(f.shape, grid)) return planes_forward(f, grid, parallel);
  const ForwardPlan<T> plan(f, parallel);
  f.winograd ? winograd_forward(plan, parallel) : direct_forward(plan, parallel);
}

// ----------------------------------------------------------------------------------------------------- backward

// Whether zero gradients may be left out: what they are multiplied with is finite.
template <class T>
bool may_skip_zeros(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  const int64_t image = s.channels * s.height * s.width, images = (s.shared ? 1 : s.models) * s.batch;
  const int64_t chunks = least(images, 16), step = divide_up(images, most(1, chunks));
  bool finite[16] = {};
  if (d.dweight == nullptr) return true;
  parallel_for(parallel, chunks, [&](int64_t i) {
    const int64_t first = least(images, i * step);
    finite[i] = all_finite(d.x + first * image, (least(images, first + step) - first) * image);
  });
  for (int64_t i = 0; i < chunks; ++i)
    if (!finite[i]) return false;
  return true;
}

// Of sums (E, parts, size), adds all parts to the first, in their order.
template <class T>
void add_parts(const Parallel& parallel, int64_t models, int64_t parts, int64_t size, T* sums) {
  const int64_t step = 64 * lanes<T>, chunks = divide_up(size, step);
  parallel_for(parallel, models * chunks, [&](int64_t task) {
    T* first = sums + task / chunks * parts * size + task % chunks * step;
    const int64_t count = least(step, size - task % chunks * step);
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < count; ++i) first[i] += first[part * size + i];
  });
}

// Gradients of weights and biases as sums over a fixed number of parts of the batch, whatever the number of threads,
// each summed in order: the result does not depend on them. `work(model, group, first, last, dweight, dbias)` adds
// those of images [first, last) to `weights` and `biases` elements; that of element k of output o then lies at place(o,
// k).
template <class T, class Work, class Place>
void sum_gradients(const ConvBackward<T>& d, const Grid& grid, int64_t weights, int64_t biases,
                   const Parallel& parallel, const Work& work, const Place& place) {
  const ConvShape& s = d.shape;
  const int64_t parts = most(1, least(s.batch, 16)), images = divide_up(s.batch, parts);
  Scratch<T> dweights(s.models * parts * s.groups * weights), dbiases(s.models * parts * s.groups * biases);
  parallel_for(parallel, s.models * parts * s.groups, [&](int64_t task) {
    const int64_t group = task % s.groups, part = task / s.groups, first = part % parts * images;
    T *dweight = dweights + task * weights, *dbias = dbiases + task * biases;
    __builtin_memset(dweight, 0, weights * sizeof(T));
    __builtin_memset(dbias, 0, biases * sizeof(T));
    if (first < s.batch) work(part / parts, group, first, least(s.batch, first + images), dweight, dbias);
  });
  add_parts(parallel, s.models, parts, s.groups * biases, dbiases.get());
  if (d.dweight != nullptr) add_parts(parallel, s.models, parts, s.groups * weights, dweights.get());
  parallel_for(parallel, s.models * s.groups, [&](int64_t task) {
    const int64_t first = task / s.groups * parts * s.groups + task % s.groups;
    if (d.dbias != nullptr)
      __builtin_memcpy(d.dbias + task * grid.outputs, dbiases + first * biases, grid.outputs * sizeof(T));
    if (d.dweight == nullptr) return;
    const T* from = dweights + first * weights;
    T* to = d.dweight + task * grid.outputs * grid.depth;
    for (int64_t o = 0; o < grid.outputs; ++o)
      for (int64_t k = 0; k < grid.depth; ++k) *to++ = from[place(o, k)];
  });
}

// By Winograd's algorithm; returns false, and leaves the gradients to be computed, where values are too large for it.
template <class T, int M>
bool winograd_backward(const ConvBackward<T>& d, const Grid& grid, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  const int64_t images = s.models * s.groups * s.batch;
  if (images == 1 && parallel.threads > 1 && d.dx != nullptr && d.dweight != nullptr) {
    ConvBackward<T> each[2] = {d, d};  // the gradients do not need each other
    each[0].dx = nullptr;
    each[1].dweight = each[1].dbias = nullptr;
    bool done[2];
    parallel_for(parallel, 2, [&](int64_t i) { done[i] = winograd_backward<T, M>(each[i], grid, {1, parallel.run}); });
    return done[0] && done[1];
  }
  const WinogradBackPlan<T, M> plan(d, grid, parallel);
  Scratch<bool> moderate(images);
  if (!plan.kernels.moderate) return false;
  sum_gradients(
      d, grid, grid.depth * plan.pitch, plan.pitch, parallel,
      [&](int64_t model, int64_t group, int64_t first, int64_t last, T* dweight, T* dbias) {
        winograd_images(plan, model, group, first, last, dweight, dbias,
                        moderate + (model * s.groups + group) * s.batch);
      },
      [&](int64_t o, int64_t k) { return k * plan.pitch + o; });
  for (int64_t i = 0; i < images; ++i)
    if (!moderate[i]) return false;
  return true;
}

template <class T>
void conv_backward(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  if (s.depthwise()) return depthwise_backward(d, parallel);
  const Grid grid(s);
  if (d.winograd && winograd_back_serves<T>(s, grid) &&
      (winograd_tile(s, grid) == 2 ? winograd_backward<T, 2>(d, grid, parallel)
                                   : winograd_backward<T, 4>(d, grid, parallel)))
    return;
  const Windows<T> windows(d, grid);
  if (windows.serves() && windows.finite && may_skip_zeros(d, parallel)) {
    sum_gradients(
        d, grid, grid.outputs * windows.weight_size, grid.outputs, parallel,
        [&](int64_t model, int64_t group, int64_t first, int64_t last, T* dweight, T* dbias) {
          const WindowsScratch<T> scratch(windows, last - first);
          for (int64_t b = first; b < last; b += scratch.images)
            backward_windows(windows, scratch, model, model * s.batch + b, least(scratch.images, last - b), group,
                             dweight, dbias);
        },
        [&](int64_t o, int64_t k) { return windows.weight_place(o, k); });
    return;
  }
  const DensePlan<T> dense(d, {s, d.x, d.weight, d.bias, nullptr, nullptr, false}, parallel);
  sum_gradients(
      d, grid, grid.depth * dense.pitch, dense.pitch, parallel,
      [&](int64_t model, int64_t group, int64_t first, int64_t last, T* dweight, T* dbias) {
        const DenseScratch<T> scratch(dense);
        for (int64_t b = first; b < last; ++b)
          dense_backward(dense, scratch, model * s.batch + b, group, dweight, dbias);
      },
      [&](int64_t o, int64_t k) { return k * dense.pitch + o; });
}

}  // namespace
}  // namespace recurve
