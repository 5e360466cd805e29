// SPDX-License-Identifier: MIT
//
// A whole call on the kernels: how it is cut into tasks, and who computes them in which memory. A
// task is a block of query tiles of one head, or, in decoding, the few query rows that share a key
// head. Tasks write their own rows and read nothing of each other's, so that neither their order nor
// the number of threads changes a bit.
// Where there are too few tasks for the threads, each is cut into its chunks of keys: the states of
// their softmax are kept, and joined afterwards, as they are anyway.
#pragma once

#include <atomic>

#include "mha/executor.hpp"
#include "mha/internal/kernels/few_rows.hpp"
#include "mha/internal/kernels/query_block.hpp"
#include "mha/internal/kernels/retention.hpp"
#include "mha/workspace.hpp"

namespace mha::inline MHA_ABI::kernels {

/// Calls of at most this many queries are computed by FewRows: with fewer than five of sixteen lanes
/// in use, lanes of keys are faster (measured at head_dim 64 and 128, 512 to 4096 keys).
inline constexpr Index kFewQueries = 4;

/// Entries of a head's keys from which on it pays to bring the next head's closer.
inline constexpr Index kWorthFetching = 2048;

/// Multiply-adds that are worth waking another thread: about 10 microseconds of them. Tests lower it,
/// so that small calls are shared out as large ones are.
#if !defined(MHA_WORK_PER_THREAD)
#define MHA_WORK_PER_THREAD 1e6
#endif
inline constexpr double kWorkPerThread = MHA_WORK_PER_THREAD;

/// Bytes beyond which no machine could keep the states of all chunks.
inline constexpr double kMostStateBytes = 0x1p50;

/// How many workers share `tasks` tasks of so much work.
inline Index workers_for(Index tasks, double multiply_adds, const Executor& executor) {
  if (executor.is_serial()) return 1;
  const double worth = 1 + multiply_adds / kWorkPerThread;
  Index workers = std::min(tasks, executor.concurrency());
  if (worth < static_cast<double>(workers)) workers = static_cast<Index>(worth);
  return std::max<Index>(workers, 1);
}

/// f(k, worker) for every task k, by `workers` workers that take one after the other.
template <class F>
void share(Index tasks, Index workers, const Executor& executor, const F& f) {
  if (workers <= 1) {
    for (Index k = 0; k < tasks; ++k) f(k, 0);
    return;
  }
  std::atomic<Index> next{0};
  executor.parallel_for(workers, [&](Index worker) {
    for (Index k = next.fetch_add(1); k < tasks; k = next.fetch_add(1)) f(k, worker);
  });
}

/// Tiles of queries: as many as needed, as equal as possible in units of 16 lanes (8 doubles).
template <class T>
struct QueryTiles {
  Index count;
  Index width;
  explicit QueryTiles(Index query_len) {
    constexpr Index kGroup = kLanes<T> / 4;
    const Index groups = (query_len + kGroup - 1) / kGroup;
    count = (groups + 3) / 4;
    width = count == 0 ? 0 : (groups + count - 1) / count * kGroup;
  }
};

/// Bytes that one worker needs.
template <class T>
std::size_t worker_bytes(const TileSizes& sizes, Index few_rows, Index tiles) {
  Arena arena;
  if (few_rows > 0) {
    const FewRowsMemory<T> memory(sizes, few_rows, arena);
  } else {
    const TileScratch<T> scratch(sizes, arena);
    for (Index t = 0; t < tiles; ++t) const QueryTileMemory<T> memory(sizes, scratch, arena);
  }
  return arena.used();
}

/// What a call comes to: its tasks and its memory.
template <class T>
struct Plan {
  bool few = false;
  Index heads_per_task = 1;
  Index parts = 1;   ///< tasks per sequence and head (per key head, if few)
  Index block = 1;   ///< query tiles of a task
  Index chunks = 1;  ///< pieces of the keys that are computed by themselves
  Index tasks = 0;
  Index workers = 1;
  TileSizes sizes;
  std::size_t bytes_per_worker = 0;
  std::size_t bytes_per_chunk = 0;

  Plan() = default;
  /// @param query_len, kv_len  the longest
  Plan(Index batch, Index num_heads, Index kv_heads, Index query_len, Index kv_len, Index head_dim,
       Index value_dim, bool extra_key, bool converts, Index first_key, const Executor& executor)
      : sizes{head_dim, value_dim, kv_len, extra_key, converts, first_key} {
    if (batch == 0 || num_heads == 0 || query_len == 0) return;
    const Index group_size = num_heads / kv_heads;
    few = query_len <= kFewQueries;
    if (few) {
      heads_per_task = std::min(group_size, kFewRows / query_len);
      parts = (group_size + heads_per_task - 1) / heads_per_task;
      tasks = batch * kv_heads * parts;
    } else {
      parts = QueryTiles<T>(query_len).count;
      tasks = batch * num_heads * parts;
    }
    const double work = static_cast<double>(batch) * static_cast<double>(num_heads) *
                        static_cast<double>(query_len) * static_cast<double>(kv_len) *
                        static_cast<double>(head_dim + value_dim);
    workers = workers_for(tasks, work, executor);
    cut_keys(work, executor, few ? heads_per_task * query_len : kLanes<T>);
    if (!few && chunks == 1) make_blocks(batch * num_heads);
    bytes_per_worker = worker_bytes<T>(sizes, few ? heads_per_task * query_len : 0, block);
  }
  std::size_t bytes() const {
    const Index states = chunks == 1 ? 0 : tasks * chunks;
    return static_cast<std::size_t>(workers) * bytes_per_worker +
           static_cast<std::size_t>(states) * bytes_per_chunk;
  }

 private:
  /// Cuts the keys if the tasks do not go round evenly and are few.
  void cut_keys(double work, const Executor& executor, Index lanes) {
    const Index most = chunks_of(sizes.kv_len);
    if (most < 2 || tasks >= 4 * executor.concurrency()) return;
    const Index wanted = workers_for(tasks * most, work, executor);
    if (wanted < 2 || tasks >= 4 * wanted || tasks % wanted == 0) return;
    Arena arena;
    const ChunkState<T> state(lanes, sizes.value_dim, arena);
    const double all_states =
        static_cast<double>(tasks) * static_cast<double>(most) * static_cast<double>(arena.used());
    if (all_states > kMostStateBytes) return;
    chunks = most;
    workers = wanted;
    bytes_per_chunk = arena.used();
  }

  /// Joins tiles to blocks, as long as there are enough of them to go round evenly.
  void make_blocks(Index heads) {
    const Index tiles = parts;
    block = std::min<Index>(tiles, 4);
    while (block > 1 && workers > 1 && heads * ((tiles + block - 1) / block) < 4 * workers) --block;
    parts = (tiles + block - 1) / block;
    block = (tiles + parts - 1) / parts;
    tasks = heads * parts;
  }
};

/// The plan of a call. `Call` is detail::BatchTask.
template <class In, class T, class Call>
Plan<T> plan_of(const Call& call, const Executor& executor) {
  return Plan<T>(call.batch(), call.query.size(1), call.key.size(1), call.query_len(),
                 call.kv_len(), call.query.size(3), call.value.size(3), call.extra.key != nullptr,
                 !std::is_same_v<In, T> || call.converts_pages(), call.box.first_key, executor);
}

/// A call, its plan and its memory.
template <class In, class Out, class T, class Call>
class PlannedCall {
 public:
  PlannedCall(const Call& call, const RuleCalls<T>& calls, const Kernels<T>& kernels,
              const Plan<T>& plan, const MemoryBlock& memory)
      : call_(call),
        calls_(calls),
        kernels_(kernels),
        plan_(plan),
        memory_(memory),
        num_heads_(call.query.size(1)),
        kv_heads_(call.key.size(1)) {}

  void run(const Executor& executor) const {
    const auto run_task = [&](Index k, Index worker) {
      if (plan_.few) {
        with_few_rows(k, worker, [](auto& rows) { rows.run(); });
      } else {
        run_block(k, worker);
      }
    };
    if (plan_.chunks == 1) {
      share(plan_.tasks, plan_.workers, executor, run_task);
      return;
    }
    share(plan_.tasks * plan_.chunks, plan_.workers, executor, [&](Index n, Index worker) {
      with_task(n / plan_.chunks, worker, [&](auto& task) {
        const Index chunk = n % plan_.chunks * kKeyChunk;
        if (!sees(task, chunk)) return;
        task.run_chunk(chunk);
        task.save(state(n));
      });
    });
    share(plan_.tasks, std::min(plan_.workers, plan_.tasks), executor, [&](Index k, Index worker) {
      with_task(k, worker, [&](auto& task) {
        for (Index c = 0; c < plan_.chunks; ++c) {
          if (!sees(task, c * kKeyChunk)) continue;
          task.load(c * kKeyChunk, state(k * plan_.chunks + c));
        }
        task.finish();
      });
    });
  }

 private:
  Head<In, Out, T> head_at(Index b, Index h) const {
    return make_head<In, Out>(kernels_, calls_, call_, b, h);
  }
  Arena arena_of(Index worker) const {
    return Arena(memory_.of_worker(worker, plan_.bytes_per_worker));
  }
  ChunkState<T> state(Index n) const {
    Arena arena(memory_.part(static_cast<std::size_t>(plan_.workers) * plan_.bytes_per_worker +
                                 static_cast<std::size_t>(n) * plan_.bytes_per_chunk,
                             plan_.bytes_per_chunk));
    const Index lanes = plan_.few ? plan_.heads_per_task * call_.query_len() : kLanes<T>;
    return ChunkState<T>(lanes, plan_.sizes.value_dim, arena);
  }
  template <class Task>
  static bool sees(const Task& task, Index chunk) {
    return task.begin() < task.end() && task.begin() < chunk + kKeyChunk && task.end() > chunk;
  }

  /// f(task k, made ready), if it has queries.
  template <class F>
  void with_task(Index k, Index worker, const F& f) const {
    if (plan_.few) {
      with_few_rows(k, worker, [&](auto& rows) {
        rows.start();
        f(rows);
      });
    } else {
      const Start start = start_of(k);
      if (start.count <= 0) return;
      const Head<In, Out, T> head = head_at(start.b, start.h);
      Arena arena = arena_of(worker);
      const TileScratch<T> scratch(plan_.sizes, arena);
      QueryTile<In, Out, T> tile(head, QueryTileMemory<T>(plan_.sizes, scratch, arena));
      tile.start(start.row, start.count);
      f(tile);
    }
  }

  template <class F>
  void with_few_rows(Index k, Index worker, const F& f) const {
    const Index b = k / (kv_heads_ * plan_.parts);
    const Index group_size = num_heads_ / kv_heads_;
    const Index kv_head = k / plan_.parts % kv_heads_;
    const Index first = k % plan_.parts * plan_.heads_per_task;
    const Index heads = std::min(plan_.heads_per_task, group_size - first);
    const Index query_len = call_.segment(b).query_len;
    if (query_len == 0) return;
    alignas(Head<In, Out, T>)
        std::byte raw[static_cast<std::size_t>(kFewRows) * sizeof(Head<In, Out, T>)];
    auto* const all = reinterpret_cast<Head<In, Out, T>*>(raw);
    for (Index n = 0; n < heads; ++n) {
      new (all + n) Head<In, Out, T>(head_at(b, kv_head * group_size + first + n));
    }
    Arena arena = arena_of(worker);
    const FewRowsMemory<T> parts(plan_.sizes, plan_.heads_per_task * call_.query_len(), arena);
    FewRows<In, Out, T> rows(all, heads, query_len, parts);
    f(rows);
  }

  /// Which head and query row task k begins at; the last block of a head first, since under a causal
  /// rule it has the most to do.
  struct Start {
    Index b;
    Index h;
    Index row;
    Index count;
    Index tile_width;
  };
  Start start_of(Index k) const {
    const Index b = k / (num_heads_ * plan_.parts);
    const Index query_len = call_.segment(b).query_len;
    const QueryTiles<T> tiles(query_len);
    const Index rows = plan_.block * tiles.width;
    const Index row = (plan_.parts - 1 - k % plan_.parts) * rows;
    return {b, k / plan_.parts % num_heads_, row, std::min(rows, query_len - row), tiles.width};
  }

  void run_block(Index k, Index worker) const {
    const Start start = start_of(k);
    if (start.count <= 0) return;
    const Head<In, Out, T> head = head_at(start.b, start.h);
    HeadTask<In, Out, T> next;
    Index next_row = 0;
    const bool fetches = plan_.sizes.kv_len * plan_.sizes.head_dim >= kWorthFetching &&
                         k + plan_.workers < plan_.tasks;
    if (fetches) {  // most probably this worker's next task
      const Start following = start_of(k + plan_.workers);
      next = call_.head(following.b, following.h);
      next_row = std::max<Index>(following.row, 0);
    }
    Arena arena = arena_of(worker);
    QueryBlock<In, Out, T>(head, fetches ? &next : nullptr, next_row)
        .run(start.row, start.count, start.tile_width, plan_.sizes, arena);
  }

  const Call& call_;
  const RuleCalls<T>& calls_;
  const Kernels<T>& kernels_;
  const Plan<T>& plan_;
  const MemoryBlock memory_;
  const Index num_heads_;
  const Index kv_heads_;
};

/// Computes a call, whose rules are known by their functions alone, in `memory`, which has at least plan.bytes():
/// compiled once per scalar.
template <class In, class Out, class T, class Call>
void compute(const Call& call, const RuleCalls<T>& calls, Target which, const Plan<T>& plan,
             const Executor& executor, const MemoryBlock& memory) {
  if (plan.tasks == 0) return;
  const auto run = [&](const RuleCalls<T>& all) {
    PlannedCall<In, Out, T, Call>(call, all, table<T>(which), plan, memory).run(executor);
  };
  if (call.retention == nullptr) {
    run(calls);
  } else {
    run(RetainedRules<T>(calls, call.retention, call.batch(), call.box.first_batch).calls());
  }
}

/// The same for a call that is all there is.
template <class In, class Out, class T, class Call>
void compute(const Call& call, const RuleCalls<T>& calls, Target which, const Executor& executor,
             Workspace* workspace) {
  const Plan<T> plan = plan_of<In, T>(call, executor);
  const mha::detail::CallMemory memory(workspace, plan.bytes());
  compute<In, Out, T>(call, calls, which, plan, executor, {memory.data(), memory.size()});
}

}  // namespace mha::kernels
