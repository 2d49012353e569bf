// The convolution block: convolution, bias, activation and pooling in one pass, and back.
//
// The backward pass goes by Winograd's algorithm where that is asked for and serves. Else, where max pooling has kept
// which pixel of a window was the largest, only these pixels' gradients are multiplied; else those of all pixels.
// Where channels come last, depthwise, Winograd's and the direct kernel read and write in place; the others work on
// planes.
#pragma once

#include "conv_dense.h"
#include "conv_depthwise.h"
#include "conv_forward.h"
#include "conv_layout.h"
#include "conv_planes.h"
#include "conv_windows.h"
#include "conv_winograd_backward.h"

namespace recurve {
namespace {

template <class T>
void forward_by_planes(const ConvForward<T>& f, const Grid& grid, const Parallel& parallel) {
  if (!f.shape.channels_last) return planes_forward(f, grid, parallel);
  const ConvShape& s = f.shape;
  const Planes<T> p(s, f.x, f.places != nullptr, parallel);
  uint8_t* places = f.places == nullptr ? nullptr : p.places.get();
  planes_forward<T>({p.shape, p.x, f.weight, f.bias, p.y, places, f.winograd}, grid, parallel);
  turn_images<T>(p.y, s.batch, s.outputs, p.pooled, f.y, parallel);
  turn_images<uint8_t>(p.places, s.batch, s.outputs, p.pooled, f.places, parallel);
}

template <class T>
void conv_forward(const ConvForward<T>& f, const Parallel& parallel) {
  const Grid grid(f.shape);
  const bool planes = !f.winograd && planes_serve<T>(f.shape, grid);
  if (f.shape.depthwise() && (f.shape.channels_last || !planes)) return depthwise_forward(f, parallel);
  if (planes) return forward_by_planes(f, grid, parallel);
  const ForwardPlan<T> plan(f, parallel);
  f.winograd ? winograd_forward(plan, parallel) : direct_forward(plan, parallel);
}

// ----------------------------------------------------------------------------------------------------- backward

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
// each summed in order: the result does not depend on them. `work(scratch, model, group, first, last, dweight, dbias)`
// adds those of images [first, last) to `weights` and `biases` elements; that of element k of output o then lies at
// place(o, k). start(count) makes the scratch for so many images, which a task's groups share.
template <class T, class Start, class Work, class Place>
void sum_gradients(const ConvBackward<T>& d, const Grid& grid, int64_t weights, int64_t biases,
                   const Parallel& parallel, const Start& start, const Work& work, const Place& place) {
  const ConvShape& s = d.shape;
  const int64_t parts = most(1, least(s.batch, 16)), images = divide_up(s.batch, parts);
  Scratch<T> dweights(s.models * parts * s.groups * weights), dbiases(s.models * parts * s.groups * biases);
  const int64_t chunks = least(s.groups, 8), groups = divide_up(s.groups, chunks);
  parallel_for(parallel, s.models * parts * chunks, [&](int64_t task) {
    const int64_t part = task / chunks, first = part % parts * images, last = least(s.batch, first + images);
    const int64_t begin = task % chunks * groups, end = least(s.groups, begin + groups);
    const auto scratch = start(most(0, last - first));
    for (int64_t group = begin; group < end; ++group) {
      T *dweight = dweights + (part * s.groups + group) * weights,
        *dbias = dbiases + (part * s.groups + group) * biases;
      __builtin_memset(dweight, 0, weights * sizeof(T));
      __builtin_memset(dbias, 0, biases * sizeof(T));
      if (first < last) work(scratch, part / parts, group, first, last, dweight, dbias);
    }
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
      d, grid, grid.depth * plan.pitch, plan.pitch, parallel, [&](int64_t) { return WinogradBackScratch<T, M>(plan); },
      [&](const auto& scratch, int64_t model, int64_t group, int64_t first, int64_t last, T* dweight, T* dbias) {
        winograd_images(plan, scratch, model, group, first, last, dweight, dbias,
                        moderate + (model * s.groups + group) * s.batch);
      },
      [&](int64_t o, int64_t k) { return k * plan.pitch + o; });
  for (int64_t i = 0; i < images; ++i)
    if (!moderate[i]) return false;
  return true;
}

// Whether to multiply the largest pixels' gradients by themselves is faster than depthwise_backward, where it serves:
// by the products of each for a gradient, as measured with kernels of 3 x 3 to 7 x 7.
template <class T>
bool windows_beat_depthwise(const ConvShape& s) {
  const int64_t all = 2 * s.window[0] * s.window[1] * s.kernel[0] * s.kernel[1] / lanes<T>;
  return all > 4 * s.kernel[0] * divide_up(s.kernel[1], lanes<T>) + 9;
}

// By the largest pixels of windows; returns false, and leaves the gradients to be computed, where infinities meet
// zeros.
template <class T>
bool windows_backward(const ConvBackward<T>& d, const Grid& grid, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  if (s.depthwise() && !windows_beat_depthwise<T>(s)) return false;
  const Windows<T> windows(d, grid);
  if (!windows.serves() || !windows.finite) return false;
  const int64_t images = s.models * s.groups * s.batch;
  Scratch<bool> finite(images);
  sum_gradients(
      d, grid, grid.outputs * windows.weight_size, grid.outputs, parallel,
      [&](int64_t count) { return WindowsScratch<T>(windows, count); },
      [&](const auto& scratch, int64_t model, int64_t group, int64_t first, int64_t last, T* dweight, T* dbias) {
        bool* done = finite + (model * s.groups + group) * s.batch;
        for (int64_t b = first, count; b < last; b += count) {
          count = least(scratch.images, last - b);
          const bool all = backward_windows(windows, scratch, model, model * s.batch + b, count, group, dweight, dbias);
          for (int64_t i = b; i < b + count; ++i) done[i] = all;
        }
      },
      [&](int64_t o, int64_t k) { return windows.weight_place(o, k); });
  for (int64_t i = 0; i < images; ++i)
    if (!finite[i]) return false;
  return true;
}

template <class T>
void conv_backward(const ConvBackward<T>& d, const Parallel& parallel);

template <class T>
void backward_by_planes(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  const Planes<T> p(s, d.x, d.places != nullptr, parallel);
  Scratch<T> dy(s.batch * s.outputs * p.pooled), dx(d.dx == nullptr ? 0 : s.batch * s.channels * p.pixels);
  turn_images(d.y, s.batch, p.pooled, s.outputs, p.y.get(), parallel);
  turn_images(d.dy, s.batch, p.pooled, s.outputs, dy.get(), parallel);
  turn_images(d.places, s.batch, p.pooled, s.outputs, p.places.get(), parallel);
  const uint8_t* places = d.places == nullptr ? nullptr : p.places.get();
  T* to = d.dx == nullptr ? nullptr : dx.get();
  conv_backward<T>({p.shape, p.x, d.weight, d.bias, p.y, places, dy, to, d.dweight, d.dbias, d.winograd}, parallel);
  turn_images<T>(dx, s.batch, s.channels, p.pixels, d.dx, parallel);
}

template <class T>
void conv_backward(const ConvBackward<T>& d, const Parallel& parallel) {
  const ConvShape& s = d.shape;
  const Grid grid(s);
  if (d.winograd && winograd_back_serves<T>(s, grid) &&
      (winograd_tile(s, grid) == 2 ? winograd_backward<T, 2>(d, grid, parallel)
                                   : winograd_backward<T, 4>(d, grid, parallel)))
    return;
  if (s.channels_last && !s.depthwise()) return backward_by_planes(d, parallel);
  if (windows_backward(d, grid, parallel)) return;
  if (s.depthwise()) return depthwise_backward(d, parallel);
  const DensePlan<T> dense(d, {s, d.x, d.weight, d.bias, nullptr, nullptr, false}, parallel);
  sum_gradients(
      d, grid, grid.depth * dense.pitch, dense.pitch, parallel, [&](int64_t) { return DenseScratch<T>(dense); },
      [&](const auto& scratch, int64_t model, int64_t group, int64_t first, int64_t last, T* dweight, T* dbias) {
        for (int64_t b = first; b < last; ++b)
          dense_backward(dense, scratch, model * s.batch + b, group, dweight, dbias);
      },
      [&](int64_t o, int64_t k) { return k * dense.pitch + o; });
}

}  // namespace
}  // namespace recurve
