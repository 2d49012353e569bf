// The geometry of the convolution block, and what its backward pass needs of the forward pass.
#pragma once

#include <cstdint>

#include "activation.h"

namespace recurve {

enum class Pool : int { none = 0, max, average };

constexpr const char* pool_names[] = {"none", "max", "average"};

// Elements from an image, a channel and a pixel to the next: channels are planes, or lie side by side at each pixel.
struct ImageLayout {
  int64_t image, channel, pixel;

  constexpr ImageLayout(bool channels_last, int64_t channels, int64_t pixels)
      : image(channels * pixels), channel(channels_last ? 1 : pixels), pixel(channels_last ? channels : 1) {}
  constexpr int64_t at(int64_t i, int64_t c, int64_t p) const { return i * image + c * channel + p * pixel; }
};

// Convolution (cross-correlation), bias, activation, pooling over windows that do not overlap.
struct ConvShape {
  int64_t models, batch, channels, height, width, outputs;
  int64_t kernel[2], stride[2], padding[2], dilation[2], groups;
  Activation activation;
  Pool pool;
  int64_t window[2];           // of the pooling; 1, 1 without
  bool shared;                 // all models read the same x
  bool channels_last = false;  // of x and y, their gradients and the places; on the CPU, of one model

  constexpr int64_t convolved(int axis) const {
    const int64_t size = axis == 0 ? height : width;
    return (size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1) / stride[axis] + 1;
  }
  constexpr int64_t pooled(int axis) const { return convolved(axis) / window[axis]; }

  constexpr ImageLayout x_layout() const { return {channels_last, channels, height * width}; }
  constexpr ImageLayout y_layout() const { return {channels_last, outputs, pooled(0) * pooled(1)}; }

  constexpr bool depthwise() const { return groups > 1 && groups == channels && groups == outputs; }

  // Whether Winograd's algorithm does: tiles of 2 or 4 rows hold whole pooling windows.
  constexpr bool winograd_serves() const {
    for (int axis = 0; axis < 2; ++axis)
      if (kernel[axis] != 3 || stride[axis] != 1 || dilation[axis] != 1) return false;
    return (window[0] == 1 || window[0] == 2 || window[0] == 4) && !depthwise();
  }

  // Whether the forward pass can leave which pixel of each window was the largest, as a byte, for the backward pass.
  constexpr bool keeps_places() const {
    return pool == Pool::max && window[0] * window[1] <= 256 && slope_follows_from_value(activation);
  }

  // Whether the backward pass can do without the pre-activations.
  constexpr bool keeps_enough() const {
    return keeps_places() || (pool == Pool::none && slope_follows_from_value(activation)) ||
           (pool == Pool::average && activation == Activation::none);
  }
};

}  // namespace recurve
