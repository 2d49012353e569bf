// Gradients of weights, biases and input, from those of the gates.
//
// They are summed while the gates' gradients of a few steps still lie in the cache, and no more of these are ever kept.
// A batch falls into parts with sums of their own, so that threads with a part each need not meet. Parts and groups of
// steps hang on shapes alone, so that results are the same for any number of threads.
#pragma once

#include "gemm.h"
#include "recurrent.h"

namespace recurve {
namespace {

// Rows [row0, row0 + rows) of models [first_model, ...) at steps [begin, end), and the gradients of their gates by
// time: (models, end - begin, rows, gradients H).
template <class T>
struct BackwardSteps {
  const SequenceBackward<T>& s;
  int64_t first_model, row0, rows;
  int64_t begin, end;
  T* dgates;

  int64_t count() const { return end - begin; }
  int64_t first_time() const { return time_of(s.shape, s.shape.reverse ? end - 1 : begin); }
  T* gates_at(int64_t model, int64_t time, int64_t row) const {
    const int64_t all_rows = ((model - first_model) * count() + time - first_time()) * rows + row - row0;
    return dgates + all_rows * gradient_count(s.shape.cell) * s.shape.hidden;
  }
};

// Parts of a batch with sums of their own, where there are few models: of rows enough to be worth it, and of sums small
// beside what is summed.
struct BatchParts {
  explicit BatchParts(const SequenceShape& s) {
    constexpr int64_t few_models = 8, most_parts = 16, most_weights = 1 << 17;
    const int64_t weights = most(1, gate_count(s.cell) * s.hidden * s.hidden);
    const int64_t least_rows = most(16, most(512 / most(1, s.hidden), 256 / most(1, s.steps)));
    const int64_t parts =
        s.models >= few_models ? 1 : least(least(s.batch / least_rows, most_weights / weights), most_parts);
    rows = most(1, divide_up(s.batch, most(1, parts)));
    count = most(1, divide_up(s.batch, rows));
  }
  int64_t rows, count;
};

// Steps whose gradients are summed at once: so many that products are worth it, so few that the gates' gradients of a
// part stay in the second-level cache.
inline int64_t steps_of_group(const SequenceShape& s) {
  constexpr int64_t least_rows = 512, most_gradients = 1 << 17;
  return most(1, most(least_rows, most_gradients / most(1, gradient_count(s.cell) * s.hidden)) / BatchParts(s).rows);
}

// Calls f(steps) for the steps of some rows, the last ones first, `at_once` of them at a time.
template <class T, class F>
void for_backward_steps(const SequenceBackward<T>& s, int64_t first_model, int64_t models, int64_t row0, int64_t rows,
                        int64_t at_once, const F& f) {
  const int64_t row = gradient_count(s.shape.cell) * s.shape.hidden;
  const Scratch<T> dgates(models * least(at_once, s.shape.steps) * rows * row);
  for (int64_t end = s.shape.steps; end > 0; end -= at_once)
    f(BackwardSteps<T>{s, first_model, row0, rows, most(0, end - at_once), end, dgates});
}

template <class T>
class GradientSums {
 public:
  explicit GradientSums(const SequenceBackward<T>& s)
      : parts(s.shape), s(s), weights_(parts.count > 1 ? sums * (I + H) * width : 0), biases_(sums * all) {
    __builtin_memset(biases_, 0, sums * all * sizeof(double));
  }

  // Adds what follows from the gradients of these steps' gates, all of one part of a model.
  void add_part(const BackwardSteps<T>& steps, int64_t part) const {
    const Parallel one{1, nullptr};
    add_sums(steps, steps.first_model, part, {0, 1}, one);
    if (s.dx != nullptr) gradient_of_input(steps, steps.first_model, 0, steps.count() * steps.rows, one);
  }

  // Likewise of all parts of all models.
  void add_all(const BackwardSteps<T>& steps, const Parallel& parallel) const {
    constexpr int64_t worth_meeting = 1 << 26;  // multiply-adds for which threads share a product
    const int64_t models = s.shape.models, rows = steps.count() * B;
    const bool meets = steps.count() * parts.rows * all * H >= worth_meeting;
    const int64_t wanted = meets ? 1 : 2 * parallel.threads;
    const int64_t shares = divide_up(wanted, sums), of_input = s.dx == nullptr ? 0 : divide_up(wanted, models);
    auto run = [&](int64_t task, const Parallel& threads) {
      const int64_t sum = task / shares, at = task - sums * shares;
      if (sum < sums) return add_sums(steps, sum / parts.count, sum % parts.count, {task % shares, shares}, threads);
      const Share own{at % of_input, of_input};
      own.of(rows,
             [&](int64_t first, int64_t count) { gradient_of_input(steps, at / of_input, first, count, threads); });
    };
    const int64_t tasks = sums * shares + models * of_input;
    if (meets)
      for (int64_t task = 0; task < tasks; ++task) run(task, parallel);
    else
      parallel_for(parallel, tasks, [&](int64_t task) { run(task, Parallel{1, parallel.run}); });
  }

  // Leaves the gradients of weights and biases.
  void finish(const Parallel& parallel) const {
    parallel_for(parallel, s.shape.models, [&](int64_t model) {
      if (s.dw_hh != nullptr && parts.count > 1) {
        add_parts(dw_ih(model, 0), width * I, s.dw_ih + model * width * I);
        add_parts(dw_hh(model, 0), width * H, s.dw_hh + model * width * H);
      }
      if (s.db_ih != nullptr) finish_biases(model);
    });
  }

  const BatchParts parts;

 private:
  const SequenceBackward<T>& s;
  const int64_t H = s.shape.hidden, I = s.inputs, B = s.shape.batch;
  const int64_t width = gate_count(s.shape.cell) * H, all = gradient_count(s.shape.cell) * H;
  const int64_t sums = s.shape.models * parts.count;
  // A GRU's gradients lie as n from the input, r, z, n from the state; its weights as r, z, n.
  const bool is_gru = s.shape.cell == Cell::gru;
  const Scratch<T> weights_;  // (E, parts, I + H, gates H), where there are parts: w_ih and w_hh one after the other
  const Scratch<double> biases_;  // (E, parts, gradients H)

  T* dw_ih(int64_t model, int64_t part) const {
    return parts.count > 1 ? weights_ + (model * parts.count + part) * (I + H) * width : s.dw_ih + model * width * I;
  }
  T* dw_hh(int64_t model, int64_t part) const {
    return parts.count > 1 ? dw_ih(model, part) + width * I : s.dw_hh + model * width * H;
  }

  struct Share {
    int64_t index, shares;

    // Calls f(first, count) for this share of `all`, in whole tiles.
    template <class F>
    void of(int64_t all, const F& f) const {
      constexpr int64_t whole_tiles = 12;
      const int64_t size = divide_up(divide_up(all, shares), whole_tiles) * whole_tiles, first = index * size;
      if (first < all) f(first, least(size, all - first));
    }
  };

  // The first parts' `count` sums, and those of the others, which lie after each other.
  void add_parts(const T* from, int64_t count, T* to) const {
    const int64_t apart = (I + H) * width;
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] + from[apart + i];
    for (int64_t part = 2; part < parts.count; ++part)
      for (int64_t i = 0; i < count; ++i) to[i] += from[part * apart + i];
  }

  void finish_biases(int64_t model) const {
    T *db_ih = s.db_ih + model * width, *db_hh = s.db_hh + model * width;
    auto sum = [&](int64_t column) {
      double sum = 0;
      for (int64_t part = 0; part < parts.count; ++part) sum += biases_[(model * parts.count + part) * all + column];
      return static_cast<T>(sum);
    };
    for (int64_t gate = 0; gate < width; ++gate) {
      db_hh[gate] = sum(all - width + gate);
      db_ih[gate] = is_gru && gate >= 2 * H ? sum(gate - 2 * H) : db_hh[gate];
    }
  }

  // Some rows of a model at some steps, the gradients of their gates, and the sums that they add to.
  struct Summed {
    const BackwardSteps<T>& steps;
    int64_t model, row0, rows;
    const T* dgates;
    T *dw_ih, *dw_hh;
    const Parallel& parallel;
  };

  // A share of the weights' rows and of the columns of the gates' gradients, for one part of a model.
  void add_sums(const BackwardSteps<T>& steps, int64_t model, int64_t part, const Share& share,
                const Parallel& parallel) const {
    const int64_t group = steps_of_group(s.shape), row0 = part * parts.rows, rows = least(parts.rows, B - row0);
    for (int64_t end = steps.end; end > steps.begin; end -= group) {
      BackwardSteps<T> summed = steps;
      summed.begin = most(steps.begin, end - group), summed.end = end;
      const T* dgates = steps.gates_at(model, summed.first_time(), row0);
      const Summed of{summed, model, row0, rows, dgates, dw_ih(model, part), dw_hh(model, part), parallel};
      if (s.dw_hh != nullptr) share.of(width, [&](int64_t first, int64_t count) { add_weights(of, first, count); });
      if (s.db_ih != nullptr)
        share.of(all, [&](int64_t first, int64_t count) {
          add_biases(summed, rows, dgates + first, count, biases_ + (model * parts.count + part) * all + first);
        });
    }
  }

  // Rows [first, first + count) of the weights.
  void add_weights(const Summed& of, int64_t first, int64_t count) const {
    const BackwardSteps<T>& steps = of.steps;
    // Columns `column` and on of the gates' gradients, those of weight rows `from` to `to`, times the states
    // (steps, B, columns) that they met.
    auto sum = [&](int64_t from, int64_t to, int64_t column, const T* dgates, const T* states, int64_t count_of_steps,
                   int64_t columns, T* out, bool accumulate) {
      const int64_t begin = most(first, from), end = least(first + count, to);
      if (begin >= end) return;
      gemm(Gemm<T>{.batch = 1,
                   .M = end - begin,
                   .N = columns,
                   .K = count_of_steps * of.rows,
                   .a = dgates + column + begin - from,
                   .a_batch = 0,
                   .a_row = 1,
                   .a_column = all,
                   .b = states,
                   .b_batch = 0,
                   .b_row = columns,
                   .b_column = 1,
                   .c = out + begin * columns,
                   .c_batch = 0,
                   .c_row = columns,
                   .bias = nullptr,
                   .bias_batch = 0,
                   .accumulate = accumulate,
                   .k_group = of.rows == B ? 0 : of.rows,
                   .a_group = steps.rows * all,
                   .b_group = B * columns},
           of.parallel);
    };
    const bool adds = steps.end < s.shape.steps;
    const int64_t time = steps.first_time(), n = steps.count();
    const int64_t first_row = (of.model * s.shape.steps + time) * B + of.row0;
    const T* x = s.x + (s.shared ? time * B + of.row0 : first_row) * I;
    sum(0, is_gru ? 2 * H : width, is_gru ? H : 0, of.dgates, x, n, I, of.dw_ih, adds);
    if (is_gru) sum(2 * H, width, 0, of.dgates, x, n, I, of.dw_ih, adds);
    // Of a GRU whose reset acts before, n sees r h' instead of h'.
    const int64_t from_state = s.shape.cell == Cell::gru_before ? 2 * H : width, column = all - width;
    auto sum_states = [&](int64_t step, const T* states, int64_t count_of_steps, bool accumulate) {
      sum(0, from_state, column, of.dgates + step * steps.rows * all, states, count_of_steps, H, of.dw_hh, accumulate);
    };
    if (s.before != nullptr) {
      sum_states(0, s.before + first_row * H, n, adds);
    } else {
      const bool starts = steps.begin == 0;  // from h0, at the first time or, in reverse, the last
      const int64_t after = s.shape.reverse ? 1 : -1, skipped = starts && !s.shape.reverse ? 1 : 0;
      if (starts) sum_states(s.shape.reverse ? n - 1 : 0, s.h0 + (of.model * B + of.row0) * H, 1, adds);
      if (n > starts) sum_states(skipped, s.y + (first_row + (skipped + after) * B) * H, n - starts, adds || starts);
    }
    if (from_state < width) sum(from_state, width, from_state, of.dgates, s.aux + first_row * H, n, H, of.dw_hh, adds);
  }

  // Adds the columns of the gates' gradients: rows that lie evenly in pairs of halves, such blocks of rows in double.
  void add_biases(const BackwardSteps<T>& steps, int64_t rows, const T* dgates, int64_t count, double* to) const {
    constexpr int64_t at_once = sums_width * lanes<T>;
    const int64_t blocks = rows == B ? 1 : steps.count(), of_block = rows == B ? steps.count() * B : rows;
    for (int64_t first = 0; first < count; first += at_once)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t columns = least(at_once, count - first);
        T sum[at_once];
        pairwise_sums(dgates + block * steps.rows * all + first, of_block, all, columns, sum);
        for (int64_t i = 0; i < columns; ++i) to[first + i] += static_cast<double>(sum[i]);
      }
  }

  // The gradient of x for rows [first, first + count) of a model's, counted over these steps.
  void gradient_of_input(const BackwardSteps<T>& steps, int64_t model, int64_t first, int64_t count,
                         const Parallel& parallel) const {
    T* dx = s.dx + ((model * s.shape.steps + steps.first_time()) * B + steps.row0) * I;
    const bool apart = steps.rows < B;  // those of a step lie apart from those of the next
    const Scratch<T> own(apart ? count * I : 0);
    T* to = apart ? own.get() : dx + first * I;
    const T* dgates = steps.gates_at(model, steps.first_time(), steps.row0) + first * all;
    auto add = [&](int64_t column, int64_t first_gate, int64_t gates, bool accumulate) {
      const T* w_ih = s.w_ih + (model * width + first_gate) * I;
      gemm(Gemm<T>{1, count, I, gates, dgates + column, 0, all, 1, w_ih, 0, I, 1, to, 0, I, nullptr, 0, accumulate},
           parallel);
    };
    add(is_gru ? H : 0, 0, is_gru ? 2 * H : width, false);
    if (is_gru) add(0, 2 * H, H, true);
    if (!apart) return;
    for (int64_t step = 0; step < steps.count(); ++step)
      __builtin_memcpy(dx + step * B * I, own + step * steps.rows * I, steps.rows * I * sizeof(T));
  }
};

}  // namespace
}  // namespace recurve
