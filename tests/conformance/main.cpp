// SPDX-License-Identifier: MIT
//
// mha_conformance DIR... [--layer FILE...] [--verbose]
// Runs every case (*.safetensors, see case.hpp) found in the folders and below through mha's public
// API and compares with what ONNX's reference implementation or PyTorch computed; a single file may
// stand for a folder. After --layer come files of trained layers (see layer_file.cpp).
// Exit status: 0, 1 if a case failed, 2 for a wrong command line or unreadable input.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "case.hpp"

namespace {

using mha::conformance::Case;
using mha::conformance::Skip;
namespace fs = std::filesystem;

constexpr const char* kUsage =
    "usage: mha_conformance DIR... [--layer FILE...] [--verbose]\n"
    "  DIR       every *.safetensors in it and below is a case; a single file works too\n"
    "  --layer   the files that follow hold trained layers with their activations\n"
    "  --verbose one line per file\n"
    "exit status: 0, 1 if a case failed, 2 for wrong usage or unreadable input\n";

struct Arguments {
  std::vector<std::string> folders;
  std::vector<std::string> layers;
  bool verbose = false;
};

enum class Outcome { passed, failed, skipped };

/// What is told about the cases of one operator and one type of number.
struct Row {
  int passed = 0;
  int failed = 0;
  int skipped = 0;
  double worst_ratio = -1;
  std::string worst;  ///< tensor and file
};

class Report {
 public:
  explicit Report(bool verbose) : verbose_(verbose) {}

  void add(const std::string& path, const std::string& group, Outcome outcome, const Case* c,
           const std::vector<std::string>& reasons) {
    Row& row = rows_[group];
    (outcome == Outcome::passed   ? row.passed
     : outcome == Outcome::failed ? row.failed
                                  : row.skipped)++;
    const bool compared = c != nullptr && !c->worst_tensor().empty();
    if (compared && c->worst_ratio() > row.worst_ratio) {
      row.worst_ratio = c->worst_ratio();
      row.worst = c->worst_tensor() + " of " + fs::path(path).filename().string();
    }
    if (outcome == Outcome::failed) {
      failures_.push_back(path);
      for (const std::string& reason : reasons) failures_.push_back("    " + reason);
    }
    if (outcome == Outcome::skipped) ++skips_[group + ": " + reasons.front()];
    if (!verbose_) return;
    const char* const names[] = {"passed", "FAILED", "skipped"};
    std::printf("%-8s%s", names[static_cast<int>(outcome)], path.c_str());
    if (compared) std::printf("  %.3f (%s)", c->worst_ratio(), c->worst_tensor().c_str());
    std::printf("\n");
  }

  /// Prints everything, the sums last.
  Row print() const {
    Row sum;
    std::printf("%-30s%8s%8s%8s  worst error / tolerance\n", "operator", "passed", "failed",
                "skipped");
    for (const auto& [group, row] : rows_) {
      std::printf("%-30s%8d%8d%8d", group.c_str(), row.passed, row.failed, row.skipped);
      if (row.worst_ratio >= 0) std::printf("  %.3f  %s", row.worst_ratio, row.worst.c_str());
      std::printf("\n");
      sum.passed += row.passed;
      sum.failed += row.failed;
      sum.skipped += row.skipped;
    }
    for (const auto& [reason, count] : skips_) {
      std::printf("skipped %d %s\n", count, reason.c_str());
    }
    for (const std::string& line : failures_) {
      std::printf("%s%s\n", line[0] == ' ' ? "" : "FAILED ", line.c_str());
    }
    std::printf("%d passed, %d failed, %d skipped\n", sum.passed, sum.failed, sum.skipped);
    return sum;
  }

 private:
  bool verbose_;
  std::map<std::string, Row> rows_;
  std::map<std::string, int> skips_;
  std::vector<std::string> failures_;
};

using Run = void (*)(Case&);

Run runner(const std::string& op) {
  using namespace mha::conformance;
  if (op == "Attention") return run_onnx_attention;
  if (op == "FlexAttention") return run_onnx_flex_attention;
  if (op == "RotaryEmbedding") return run_onnx_rotary_embedding;
  if (op == "sdpa") return run_torch_sdpa;
  if (op == "MultiheadAttention") return run_torch_multihead_attention;
  if (op == "TransformerEncoderLayer") return run_torch_encoder_layer;
  if (op == "LinearAttention") {
    return [](Case&) { throw Skip("not softmax attention, not in this library"); };
  }
  throw std::runtime_error("the operator \"" + op + "\" is not known");
}

/// The operator and the type of its numbers: that of the first of the usual inputs.
std::string group_of(const Case& c, bool is_layer) {
  std::string op = is_layer ? "layer" : c.op();
  for (const char* name : {"Q", "X", "query", "src", "x"}) {
    if (c.has(name)) return op + " " + c.dtype(name);
  }
  return op;
}

/// Runs one file. @return false if it can't be read
bool run_file(const std::string& path, bool is_layer, Report& report) {
  std::unique_ptr<Case> c;
  try {
    c = std::make_unique<Case>(path);
  } catch (const std::exception& error) {
    report.add(path, "(unreadable)", Outcome::failed, nullptr, {error.what()});
    return false;
  }
  const std::string group = group_of(*c, is_layer);
  try {
    (is_layer ? mha::conformance::run_layer_file : runner(c->op()))(*c);
    c->finish();
  } catch (const Skip& skip) {
    report.add(path, group, Outcome::skipped, nullptr, {skip.what()});
    return true;
  } catch (const std::exception& error) {
    c->fail(error.what());
  }
  const bool passed = c->failures().empty();
  report.add(path, group, passed ? Outcome::passed : Outcome::failed, c.get(), c->failures());
  return true;
}

/// The cases in a folder and below, in a fixed order; a file is itself.
/// @throws std::runtime_error if there are none
std::vector<std::string> cases_in(const std::string& folder) {
  std::vector<std::string> paths;
  if (fs::is_regular_file(folder)) return {folder};
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().extension() == ".safetensors") {
      paths.push_back(entry.path().string());
    }
  }
  if (paths.empty()) throw std::runtime_error(folder + ": no *.safetensors in it or below");
  std::sort(paths.begin(), paths.end());
  return paths;
}

/// @throws std::runtime_error for a wrong command line
Arguments parse(const std::vector<std::string>& words) {
  Arguments arguments;
  bool layers_follow = false;
  for (const std::string& word : words) {
    if (word == "--layer") {
      layers_follow = true;
    } else if (word == "--verbose") {
      arguments.verbose = true;
    } else if (word.rfind('-', 0) == 0) {
      throw std::runtime_error("the option " + word + " is not known");
    } else {
      (layers_follow ? arguments.layers : arguments.folders).push_back(word);
    }
  }
  if (layers_follow && arguments.layers.empty()) {
    throw std::runtime_error("--layer must be followed by files");
  }
  if (arguments.folders.empty() && arguments.layers.empty()) {
    throw std::runtime_error("expected a folder, or --layer and a file");
  }
  return arguments;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  std::vector<std::string> cases;
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (std::find(words.begin(), words.end(), "--help") != words.end()) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    arguments = parse(words);
    for (const std::string& folder : arguments.folders) {
      const std::vector<std::string> found = cases_in(folder);
      cases.insert(cases.end(), found.begin(), found.end());
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mha_conformance: %s\n%s", error.what(), kUsage);
    return 2;
  }
  Report report(arguments.verbose);
  bool readable = true;
  for (const std::string& path : cases) readable = run_file(path, false, report) && readable;
  for (const std::string& path : arguments.layers) {
    readable = run_file(path, true, report) && readable;
  }
  const Row sum = report.print();
  if (!readable) return 2;
  return sum.failed == 0 ? 0 : 1;
}
