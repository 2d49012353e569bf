// Runs the kernel table, without torch, on pseudo-random inputs against plain loops in double; fails on a mismatch.
#include <cmath>
#include <cstdio>
#include <vector>

#include "../../csrc/cpu/kernels.h"

using namespace recurve;

namespace {

int failures = 0;

// A linear congruential generator (Knuth's MMIX): the same numbers on every machine, in [-1, 1).
double random_number() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(static_cast<int64_t>(state) >> 11) / (int64_t{1} << 52);
}

template <class T>
std::vector<T> random_values(int64_t count, double scale = 1) {
  std::vector<T> values(count);
  for (T& value : values) value = static_cast<T>(scale * random_number());
  return values;
}

template <class T>
void expect(const char* what, const std::vector<T>& found, const std::vector<double>& wanted) {
  const double tolerance = sizeof(T) == 4 ? 1e-4 : 1e-11;
  double scale = 1;
  for (double value : wanted) scale = std::fmax(scale, std::fabs(value));
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (std::fabs(static_cast<double>(found[i]) - wanted[i]) <= tolerance * scale) continue;
    std::printf("%s %s[%zu]: %.9g instead of %.9g\n", sizeof(T) == 4 ? "float" : "double", what, i,
                static_cast<double>(found[i]), wanted[i]);
    ++failures;
    return;
  }
}

const Parallel serial{1, nullptr};

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

// An LSTM over one model, its loss the sum of dy y: forward states, and gradients by back-propagation through time.
template <class T>
void check_lstm(int64_t steps, int64_t batch, int64_t inputs, int64_t hidden) {
  const int64_t S = steps, B = batch, I = inputs, H = hidden;
  const auto x = random_values<T>(S * B * I), w_ih = random_values<T>(4 * H * I, 0.3);
  const auto w_hh = random_values<T>(4 * H * H, 0.3), bias = random_values<T>(4 * H);
  const auto h0 = random_values<T>(B * H), c0 = random_values<T>(B * H), dy = random_values<T>(S * B * H);
  std::vector<T> gates(S * B * 4 * H), cells(S * B * H), y(S * B * H), h_n(B * H), c_n(B * H);
  const SequenceShape shape{Cell::lstm, 1, S, B, H, false, nullptr, nullptr, Activation::none, 1};
  SequenceForward<T> forward{};
  forward.shape = shape;
  forward.x = x.data(), forward.inputs = I, forward.w_ih = w_ih.data(), forward.bias = bias.data();
  forward.gates = gates.data(), forward.aux = cells.data(), forward.keep = true;
  forward.w_hh = w_hh.data(), forward.h0 = h0.data(), forward.c0 = c0.data();
  forward.y = y.data(), forward.h_n = h_n.data(), forward.c_n = c_n.data();
  kernels<T>().sequence_forward(forward, serial);

  std::vector<double> g(S * B * 4 * H), c(S * B * H), h(S * B * H);
  auto h_before = [&](int64_t t, int64_t b, int64_t j) {
    return t == 0 ? static_cast<double>(h0[b * H + j]) : h[((t - 1) * B + b) * H + j];
  };
  auto c_before = [&](int64_t t, int64_t b, int64_t j) {
    return t == 0 ? static_cast<double>(c0[b * H + j]) : c[((t - 1) * B + b) * H + j];
  };
  for (int64_t t = 0; t < S; ++t)
    for (int64_t b = 0; b < B; ++b) {
      double* gate = &g[(t * B + b) * 4 * H];
      for (int64_t row = 0; row < 4 * H; ++row) {
        double sum = bias[row];
        for (int64_t i = 0; i < I; ++i) sum += double(w_ih[row * I + i]) * double(x[(t * B + b) * I + i]);
        for (int64_t j = 0; j < H; ++j) sum += double(w_hh[row * H + j]) * h_before(t, b, j);
        gate[row] = row / H == 2 ? std::tanh(sum) : sigmoid_of(sum);
      }
      for (int64_t j = 0; j < H; ++j) {
        const int64_t at = (t * B + b) * H + j;
        c[at] = gate[H + j] * c_before(t, b, j) + gate[j] * gate[2 * H + j];
        h[at] = gate[3 * H + j] * std::tanh(c[at]);
      }
    }
  expect("lstm y", y, h);
  expect("lstm c", cells, c);

  std::vector<T> dh0(B * H), dc0(B * H), dx(x.size()), dw_ih(w_ih.size()), dw_hh(w_hh.size()), db(4 * H), db_hh(4 * H);
  SequenceBackward<T> backward{};
  backward.shape = shape;
  backward.gates = gates.data(), backward.aux = cells.data(), backward.y = y.data();
  backward.x = x.data(), backward.inputs = I, backward.w_ih = w_ih.data(), backward.w_hh = w_hh.data();
  backward.h0 = h0.data(), backward.c0 = c0.data(), backward.dy = dy.data();
  backward.dh0 = dh0.data(), backward.dc0 = dc0.data(), backward.dx = dx.data();
  backward.dw_ih = dw_ih.data(), backward.dw_hh = dw_hh.data();
  backward.db_ih = db.data(), backward.db_hh = db_hh.data();
  kernels<T>().sequence_backward(backward, serial);

  std::vector<double> dg(4 * H), dh(B * H), dc(B * H), dx_wanted(x.size()), dw_ih_wanted(w_ih.size());
  std::vector<double> dw_hh_wanted(w_hh.size()), db_wanted(4 * H);
  for (int64_t t = S - 1; t >= 0; --t)
    for (int64_t b = 0; b < B; ++b) {
      const double* gate = &g[(t * B + b) * 4 * H];
      double* d = dg.data();
      for (int64_t j = 0; j < H; ++j) {
        const int64_t at = (t * B + b) * H + j;
        const double i = gate[j], f = gate[H + j], n = gate[2 * H + j], o = gate[3 * H + j], tanh_c = std::tanh(c[at]);
        const double dh_all = dh[b * H + j] + double(dy[at]);
        const double dc_all = dc[b * H + j] + dh_all * o * (1 - tanh_c * tanh_c);
        d[j] = dc_all * n * i * (1 - i), d[H + j] = dc_all * c_before(t, b, j) * f * (1 - f);
        d[2 * H + j] = dc_all * i * (1 - n * n), d[3 * H + j] = dh_all * tanh_c * o * (1 - o);
        dc[b * H + j] = dc_all * f;
      }
      for (int64_t j = 0; j < H; ++j) {
        dh[b * H + j] = 0;
        for (int64_t row = 0; row < 4 * H; ++row) dh[b * H + j] += d[row] * double(w_hh[row * H + j]);
      }
      for (int64_t row = 0; row < 4 * H; ++row) {
        db_wanted[row] += d[row];
        for (int64_t j = 0; j < H; ++j) dw_hh_wanted[row * H + j] += d[row] * h_before(t, b, j);
        for (int64_t i = 0; i < I; ++i) {
          dx_wanted[(t * B + b) * I + i] += d[row] * double(w_ih[row * I + i]);
          dw_ih_wanted[row * I + i] += d[row] * double(x[(t * B + b) * I + i]);
        }
      }
    }
  expect("lstm dx", dx, dx_wanted);
  expect("lstm dw_ih", dw_ih, dw_ih_wanted);
  expect("lstm dw_hh", dw_hh, dw_hh_wanted);
  expect("lstm db_ih", db, db_wanted);
  expect("lstm db_hh", db_hh, db_wanted);
  expect("lstm dh0", dh0, dh);
  expect("lstm dc0", dc0, dc);
}

template <class T>
void check_gemm(int64_t M, int64_t N, int64_t K, bool transposed) {
  const auto a = random_values<T>(M * K), b = random_values<T>(K * N), bias = random_values<T>(N);
  std::vector<T> c(M * N);
  std::vector<double> wanted(M * N);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      double sum = bias[n];
      for (int64_t k = 0; k < K; ++k)
        sum += double(transposed ? a[k * M + m] : a[m * K + k]) * double(transposed ? b[n * K + k] : b[k * N + n]);
      wanted[m * N + n] = sum;
    }
  const Gemm<T> product{1,
                        M,
                        N,
                        K,
                        a.data(),
                        0,
                        transposed ? 1 : K,
                        transposed ? M : 1,
                        b.data(),
                        0,
                        transposed ? 1 : N,
                        transposed ? K : 1,
                        c.data(),
                        0,
                        N,
                        bias.data(),
                        0,
                        false};
  kernels<T>().gemm(product, serial);
  expect(transposed ? "gemm transposed" : "gemm", c, wanted);
}

// Convolution with padding 1, tanh and average pooling over 2 x 2, its loss the sum of dy y.
template <class T>
void check_conv(int64_t batch, int64_t channels, int64_t outputs, int64_t height, int64_t width) {
  const int64_t B = batch, C = channels, O = outputs, R = height, W = width, k = 3;
  const auto x = random_values<T>(B * C * R * W), weight = random_values<T>(O * C * k * k, 0.3);
  const auto bias = random_values<T>(O);
  const ConvShape s{1,      B,    C, R, W, O, {k, k}, {1, 1}, {1, 1}, {1, 1}, 1, Activation::tanh, Pool::average,
                    {2, 2}, false};
  const int64_t P = s.pooled(0), Q = s.pooled(1);
  const auto dy = random_values<T>(B * O * P * Q);
  std::vector<T> y(B * O * P * Q), dx(x.size()), dweight(weight.size()), dbias(O);
  kernels<T>().conv_forward({s, x.data(), weight.data(), bias.data(), y.data(), nullptr, false}, serial);
  kernels<T>().conv_backward({s, x.data(), weight.data(), bias.data(), nullptr, nullptr, dy.data(), dx.data(),
                              dweight.data(), dbias.data(), false},
                             serial);

  std::vector<double> wanted(y.size()), dx_wanted(x.size()), dweight_wanted(weight.size()), dbias_wanted(O);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t o = 0; o < O; ++o)
      for (int64_t p = 0; p < 2 * P; ++p)
        for (int64_t q = 0; q < 2 * Q; ++q) {
          auto for_taps = [&](auto&& use) {
            for (int64_t c = 0; c < C; ++c)
              for (int64_t u = 0; u < k; ++u)
                for (int64_t v = 0; v < k; ++v) {
                  const int64_t row = p + u - 1, column = q + v - 1;
                  if (row < 0 || row >= R || column < 0 || column >= W) continue;
                  use(((b * C + c) * R + row) * W + column, ((o * C + c) * k + u) * k + v);
                }
          };
          double sum = bias[o];
          for_taps([&](int64_t i, int64_t j) { sum += double(x[i]) * double(weight[j]); });
          const double value = std::tanh(sum);
          const int64_t at = ((b * O + o) * P + p / 2) * Q + q / 2;
          wanted[at] += value / 4;
          const double d = double(dy[at]) / 4 * (1 - value * value);
          dbias_wanted[o] += d;
          for_taps([&](int64_t i, int64_t j) {
            dx_wanted[i] += d * double(weight[j]);
            dweight_wanted[j] += d * double(x[i]);
          });
        }
  expect("conv y", y, wanted);
  expect("conv dx", dx, dx_wanted);
  expect("conv dweight", dweight, dweight_wanted);
  expect("conv dbias", dbias, dbias_wanted);
}

template <class T>
void check_all() {
  for (int64_t hidden : {1, 7, 16, 37}) check_lstm<T>(5, 9, 3, hidden);
  check_lstm<T>(4, 1, 6, 20);
  check_lstm<T>(300, 40, 3, 7);  // in two parts, and more steps than are summed at once
  for (bool transposed : {false, true}) {
    check_gemm<T>(13, 37, 300, transposed);
    check_gemm<T>(1, 3, 5, transposed);
    check_gemm<T>(70, 65, 9, transposed);
  }
  check_conv<T>(3, 2, 5, 11, 14);
  check_conv<T>(2, 5, 20, 8, 6);
}

}  // namespace

int main() {
  check_all<float>();
  check_all<double>();
  std::printf("%s: %d mismatches\n", instruction_set().name, failures);
  return failures == 0 ? 0 : 1;
}
