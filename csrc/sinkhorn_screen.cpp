// guardcore::sinkhorn_screen and guardcore::sinkhorn_screen_packed on the CPU.
//
// Three stages, each for the pairs that the one before left open: a bound from 8-bit codes where the processor has the
// products for it, the bound on the float32 cost tile, the solver. Bounds hold in exact arithmetic, so each allows for
// its own rounding; and the first two are below the tile's numbers, which no patch score is below.
#include <cmath>
#include <limits>
#include <tuple>

#include "operators.h"
#include "plan_output.h"
#include "quantized_prototypes.h"
#include "transport.h"

namespace guardcore {
namespace {

constexpr double kUnit = 0x1p-24;  // rounding of one float32 operation, relative

// A computed cost is this near to the exact one. Both unit rows are off by 3 roundings an element; chains of kDepth
// products at most, then a sum of the chains, lose one rounding a term of sums below 1 (Higham 2002, section 3.1);
// taking it from 1 loses two more. Twice that, for what is of second order.
double cost_slack(int64_t width) {
  const double terms = std::min(width, kDepth) + (width + kNarrowDepth - 1) / kNarrowDepth + 6;
  return 2 * (terms + 10) * kUnit;
}

// A bound from codes is this near to the exact one: lengths of rows and residuals are square roots of sums of width /
// 32 terms and a few lanes, the rest are ten operations on numbers near 1. Twice that.
double code_slack(int64_t width) { return 2 * (width / 16.0 + 48) * kUnit; }

// What the solver's rounding can take off a distance, relative: sums of N and of M terms, exponents below 88.
double distance_share(const Problem& q) { return 2 * static_cast<double>(q.patches + q.prototypes + 512) * kUnit; }

float rounded_down(double value) {
  const float nearest = static_cast<float>(value);
  return nearest > value ? std::nextafter(nearest, -std::numeric_limits<float>::infinity()) : nearest;
}

struct Screened {
  Tensor cleared, bound;
  PlanOutput plans;
};

class Screening {
 public:
  Screening(const Patches& items, const Prototypes& banks, const float* threshold, bool by_distance,
            const Options& options, std::optional<double> relaxation, const Screened& out)
      : items_(items),
        banks_(banks),
        threshold_(threshold),
        by_distance_(by_distance),
        options_(options),
        relaxation_(relaxation),
        out_(out),
        bound_(out.bound.mutable_data_ptr<float>()),
        cleared_(out.cleared.mutable_data_ptr<bool>()) {}

  void run();

 private:
  int64_t pair(int64_t item, int64_t category) const { return item * banks_.categories() + category; }
  bool clear(int64_t item, int64_t category, float bound);
  float bound_of(double statistic, const Problem& q, double slack) const;
  void clear_by_codes(const QuantizedPrototypes& codes, int64_t first, int64_t last);
  void clear_item_by_codes(const QuantizedPrototypes& codes, int64_t item, const float* upper);
  void solve_open(const Task& task, bool sound, Workspace& w);

  const Patches& items_;
  const Prototypes& banks_;
  const float* threshold_;
  bool by_distance_;
  Options options_;
  std::optional<double> relaxation_;
  const Screened& out_;
  float* bound_;
  bool* cleared_;
};

void Screening::run() {
  const int64_t items = items_.items(), categories = banks_.categories();
  std::fill(cleared_, cleared_ + items * categories, false);
  std::fill(bound_, bound_ + items * categories, -std::numeric_limits<float>::infinity());
  const bool bounded = !(by_distance_ && relaxation_);
  if (bounded && upper_cosines()) {
    const QuantizedPrototypes codes(banks_);
    torch::stable::parallel_for(0, items, 1, [&](int64_t first, int64_t last) { clear_by_codes(codes, first, last); });
  }
  std::vector<Task> open;
  for (int64_t item = 0; item < items; ++item)
    for (int64_t category = 0; category < categories; ++category)
      if (!cleared_[pair(item, category)]) open.push_back({item, category, category + 1});
  for_each_task(items_, banks_, open, [&](const Task& task, bool sound, Workspace& w) { solve_open(task, sound, w); });
}

// Notes a bound; true if it decides the pair.
bool Screening::clear(int64_t item, int64_t category, float bound) {
  const int64_t at = pair(item, category);
  bound_[at] = std::max(bound_[at], bound);
  cleared_[at] = bound_[at] > threshold_[category];
  if (cleared_[at]) out_.plans.write_missing(items_, item, category);
  return cleared_[at];
}

float Screening::bound_of(double statistic, const Problem& q, double slack) const {
  const double share = by_distance_ ? distance_share(q) : 0;
  return rounded_down(statistic - share * std::fabs(statistic) - slack);
}

void Screening::clear_by_codes(const QuantizedPrototypes& codes, int64_t first, int64_t last) {
  const QuantizedBank bank = codes.bank();
  std::vector<float> scratch(kLanes * items_.width()), upper(bank.columns);
  std::vector<uint8_t> code(kLanes * bank.width);
  for (int64_t item = first; item < last; ++item)
    if (items_.has_mass(item) && upper_cosines()(items_.rows(item), bank, scratch.data(), code.data(), upper.data()))
      clear_item_by_codes(codes, item, upper.data());
}

void Screening::clear_item_by_codes(const QuantizedPrototypes& codes, int64_t item, const float* upper) {
  const double slack = cost_slack(items_.width()) + code_slack(items_.width());
  for (int64_t category = 0; category < banks_.categories(); ++category) {
    if (!banks_.sound(category)) continue;
    const Problem q(items_.count(item), banks_.count(category), options_);
    double least = std::numeric_limits<double>::infinity(), sum = 0;
    for (int64_t m = 0; m < q.prototypes; ++m) {
      const int64_t column = codes.first(category) + m;
      const double nearest = 1.0 - upper[column] - codes.residual(column);
      least = std::min(least, nearest);
      sum += banks_.shares(category)[m] * nearest;
    }
    clear(item, category, bound_of(by_distance_ ? sum : least, q, slack));
  }
}

void Screening::solve_open(const Task& task, bool sound, Workspace& w) {
  const int64_t item = task.item, category = task.first;
  if (!sound || !banks_.sound(category)) {
    bound_[pair(item, category)] = std::numeric_limits<float>::quiet_NaN();
    out_.plans.write_missing(items_, item, category);
    return;
  }
  const Problem q = cost_of_pair(items_, item, banks_, category, options_, w);
  const bool bounded = !(by_distance_ && relaxation_);
  const double statistic = bounded ? kernels().least_statistic(q, w, by_distance_) : 0;
  if (bounded && clear(item, category, bound_of(statistic, q, cost_slack(items_.width())))) return;
  kernels().solve(q, w);
  out_.plans.write_plan(items_, item, banks_, category, q, relaxation_, w);
}

ScreenResult run(const Tensor& patches, const std::optional<Tensor>& cu_seqlens, const Tensor& prototypes,
                 const Tensor& threshold, const std::optional<Tensor>& patch_weights,
                 const std::optional<Tensor>& prototype_weights, bool by_distance, const Options& options,
                 std::optional<double> relaxation) {
  const Patches items(patches, cu_seqlens, patch_weights);
  const Prototypes banks(prototypes, prototype_weights);
  STD_TORCH_CHECK(threshold.is_cpu() && threshold.dim() == 1 && threshold.size(0) == banks.categories() &&
                      threshold.scalar_type() == ScalarType::Float,
                  "threshold must be a float32 CPU vector with one number for each category");
  const Tensor limits = torch::stable::contiguous(threshold);
  const float* limit = limits.const_data_ptr<float>();
  for (int64_t c = 0; c < banks.categories(); ++c)
    STD_TORCH_CHECK(!std::isnan(limit[c]), "threshold must not be NaN, got NaN at ", c);
  const std::vector<int64_t> pairs{items.items(), banks.categories()};
  const Screened out{empty_like_on_cpu(patches, pairs, ScalarType::Bool), empty_like_on_cpu(patches, pairs),
                     PlanOutput(patches, items, banks, false)};
  Screening(items, banks, limit, by_distance, options, relaxation, out).run();
  return {out.cleared,           out.bound,           out.plans.distance,   out.plans.patch_cost,
          out.plans.patch_score, out.plans.objective, out.plans.iterations, out.plans.marginal_error};
}

}  // namespace

ScreenResult sinkhorn_screen(Tensor patches, Tensor prototypes, Tensor threshold, std::optional<Tensor> patch_weights,
                             std::optional<Tensor> prototype_weights, bool by_distance, double epsilon,
                             int64_t max_iterations, double tolerance, std::optional<double> relaxation) {
  check_embeddings(patches, 3, prototypes, 3);
  const Options options = checked_options(epsilon, max_iterations, tolerance, relaxation);
  return run(patches, std::nullopt, prototypes, threshold, patch_weights, prototype_weights, by_distance, options,
             relaxation);
}

ScreenResult sinkhorn_screen_packed(Tensor patches, Tensor cu_seqlens, Tensor prototypes, Tensor threshold,
                                    std::optional<Tensor> patch_weights, std::optional<Tensor> prototype_weights,
                                    bool by_distance, double epsilon, int64_t max_iterations, double tolerance,
                                    std::optional<double> relaxation) {
  check_embeddings(patches, 2, prototypes, 3);
  const Options options = checked_options(epsilon, max_iterations, tolerance, relaxation);
  return run(patches, cu_seqlens, prototypes, threshold, patch_weights, prototype_weights, by_distance, options,
             relaxation);
}

}  // namespace guardcore
