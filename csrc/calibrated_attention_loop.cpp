// The loop of calibrated attention: pieces of work for torch's threads, the longest first.
//
// Few slots, as in decoding, are too few pieces for the threads: their keys are cut into parts of a fixed length,
// whatever the number of threads, and whoever ends the last part of a head merges them. Sums are so the same bits for
// any number of threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <new>

#include "calibrated_attention.h"
#include "kernels/table.h"

namespace guardcore {
namespace {

constexpr int64_t kPartKeys = 8 * kKeyBlock;

// The parts of one head's keys; `floats` is where their sums lie.
struct Split {
  int64_t floats, parts;
  std::atomic<int64_t> left;
};

// Slots of one KV head of one item against some or all of its keys, which are part `part` of a split. Larger cost goes
// first.
struct Piece {
  int64_t item, head, first, count;
  KeyRange range;
  Split* split;
  int64_t part, cost;
};

struct AlignedDelete {
  void operator()(float* p) const { operator delete[](p, std::align_val_t{64}); }
};
using Floats = std::unique_ptr<float[], AlignedDelete>;

Floats allocate(int64_t count) { return Floats(new (std::align_val_t{64}) float[count]); }

// Keys without the hidden blocks at both ends.
KeyRange visible_part(const AttentionTask& task, KeyRange keys) {
  const auto hidden = [&](int64_t key) {
    return task.blocks[key / kKeyBlock].first == task.blocks[key / kKeyBlock].end;
  };
  while (keys.first < keys.end && hidden(keys.first)) keys.first = (keys.first / kKeyBlock + 1) * kKeyBlock;
  while (keys.first < keys.end && hidden(keys.end - 1)) keys.end = (keys.end - 1) / kKeyBlock * kKeyBlock;
  return keys;
}

class Pieces {
 public:
  Pieces(const std::vector<AttentionTask>& items, int64_t kv_heads) : items_(items) {
    int64_t blocks = 0;
    for (const AttentionTask& item : items) blocks += kv_heads * blocks_of(item);
    const int64_t threads = torch::stable::get_num_threads();
    // a full team where there are enough of them for all threads: no sum depends on this
    step_ = kernels().attention_block * std::clamp<int64_t>(blocks / (4 * threads), 1, kernels().attention_team);
    for (size_t item = 0; item < items.size(); ++item)
      for (int64_t head = 0; head < kv_heads; ++head) add(static_cast<int64_t>(item), head);
    std::stable_sort(pieces_.begin(), pieces_.end(), [](const Piece& a, const Piece& b) { return a.cost > b.cost; });
    if (floats_ > 0) sums_ = allocate(floats_);
  }

  int64_t count() const { return static_cast<int64_t>(pieces_.size()); }

  void run(int64_t index, float* scratch) {
    const Piece& piece = pieces_[index];
    AttentionTask task = items_[piece.item].of_head(piece.head);
    task.range = piece.range;
    if (!piece.split) return kernels().attend(task, piece.first, piece.count, scratch);
    float* sums = sums_.get() + piece.split->floats;
    task.part = sums + piece.part * task.slots() * task.part_floats();
    kernels().attend(task, piece.first, piece.count, scratch);
    if (--piece.split->left == 0) kernels().merge_parts(task, sums, piece.split->parts, scratch);
  }

 private:
  static int64_t blocks_of(const AttentionTask& item) {
    return (item.slots() + kernels().attention_block - 1) / kernels().attention_block;
  }

  void add(int64_t item, int64_t head) {
    const AttentionTask& task = items_[item];
    if (blocks_of(task) == 1) return add_parts(item, head);
    for (int64_t first = 0; first < task.slots(); first += step_) {
      const int64_t count = std::min(step_, task.slots() - first), last = (first + count - 1) / task.heads;
      const int64_t keys = task.near_keys(last).end - task.near_keys(first / task.heads).first;
      pieces_.push_back({item, head, first, count, task.range, nullptr, 0, count * keys});
    }
  }

  void add_parts(int64_t item, int64_t head) {
    const AttentionTask& task = items_[item];
    const KeyRange sight = visible_part(task, task.sight(0, task.rows));
    const int64_t begin = sight.first / kPartKeys, end = (sight.end + kPartKeys - 1) / kPartKeys;
    // The whole head's, so that its parts stay in order: each asks for the next one's keys ahead.
    const int64_t cost = task.slots() * std::max<int64_t>(sight.end - sight.first, 0);
    if (end - begin <= 1) {
      pieces_.push_back({item, head, 0, task.slots(), task.range, nullptr, 0, cost});
      return;
    }
    Split& split = splits_.emplace_back();
    split.floats = floats_, split.parts = end - begin, split.left = end - begin;
    floats_ += split.parts * task.slots() * task.part_floats();
    for (int64_t i = begin; i < end; ++i) {
      const KeyRange range{i * kPartKeys, (i + 1) * kPartKeys};
      pieces_.push_back({item, head, 0, task.slots(), range, &split, i - begin, cost});
    }
  }

  const std::vector<AttentionTask>& items_;
  int64_t step_, floats_ = 0;
  std::vector<Piece> pieces_;
  std::deque<Split> splits_;
  Floats sums_;
};

}  // namespace

void attend_all(const std::vector<AttentionTask>& items, int64_t kv_heads) {
  if (items.empty()) return;
  Pieces pieces(items, kv_heads);
  const int64_t threads = torch::stable::get_num_threads(), count = pieces.count();
  const int64_t scratch_size = kernels().attention_scratch(items[0].width, items[0].classes);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, std::min(threads, count), 1, [&](int64_t, int64_t) {
    Floats scratch;
    for (int64_t i = next++; i < count; i = next++) {
      if (!scratch) scratch = allocate(scratch_size);
      pieces.run(i, scratch.get());
    }
  });
}

}  // namespace guardcore
