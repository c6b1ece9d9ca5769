// A make-believe accelerator for the tests: PyTorch's PrivateUse1 device type, with its own allocator, its own random
// numbers, two devices, autocast, and no kernel of its own. Every operator is sent to the host by one boxed fallback,
// which refuses what real hardware refuses: an operator that gets tensors of two devices.
//
// It shows that the house runs on a device that PyTorch's core does not know; it says nothing on speed or rounding. Whoever asks
// for it (`watch`) is told of all that makes the host of real hardware wait for the device: copies to the host, copies to the device
// that do not come from page-locked memory or are not asked to go on alone, values that are read, sizes that depend on values, and
// synchronizations. What the simulation itself copies is not told.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/native_batch_norm.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

constexpr c10::DeviceType kFake = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kCount = 2;
thread_local c10::DeviceIndex current = 0;
std::mutex lock;

// ---- what the host waits for ----------------------------------------------------------------------------------------

using Watcher = void (*)(const char* kind, const char* what);
std::atomic<Watcher> watcher{nullptr};
thread_local int inside = 0;
struct Inside {  // what the simulation does is not what the program asked for
  Inside() { ++inside; }
  ~Inside() { --inside; }
};
void host_waits(const char* kind, const char* what) {
  const Watcher own = watcher.load();
  if (own != nullptr && inside == 0) {
    own(kind, what);
  }
}

// ---- memory ---------------------------------------------------------------------------------------------------------

struct Block {
  size_t bytes;
  c10::DeviceIndex index;
};
std::unordered_map<void*, Block> blocks;
std::set<const void*> pinned;
std::array<int64_t, kCount> in_use{}, peak{};

void release(void* data) {
  if (data == nullptr) {
    return;
  }
  std::lock_guard<std::mutex> held(lock);
  auto found = blocks.find(data);
  in_use[found->second.index] -= static_cast<int64_t>(found->second.bytes);
  blocks.erase(found);
  std::free(data);
}

struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(kFake, current);
    if (bytes == 0) {
      return {nullptr, nullptr, &release, device};
    }
    void* data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    TORCH_CHECK(data != nullptr, "fakeacc is out of memory: asked for ", bytes, " bytes");
    std::lock_guard<std::mutex> held(lock);
    blocks[data] = {bytes, current};
    in_use[current] += static_cast<int64_t>(bytes);
    peak[current] = std::max(peak[current], in_use[current]);
    return {data, data, &release, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

void unpin(void* data) {
  std::lock_guard<std::mutex> held(lock);
  pinned.erase(data);
  std::free(data);
}

struct PinnedMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::aligned_alloc(64, (bytes / 64 + 1) * 64);
    std::lock_guard<std::mutex> held(lock);
    pinned.insert(data);
    return {data, data, &unpin, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

DeviceMemory device_memory;
PinnedMemory pinned_memory;
REGISTER_ALLOCATOR(kFake, &device_memory)

// ---- which device is current ----------------------------------------------------------------------------------------

thread_local std::array<c10::StreamId, kCount> stream_of{};
std::atomic<c10::StreamId> streams{0};
std::atomic<int64_t> side_copies{0}, stream_waits{0}, recorded{0};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kFake; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return {kFake, current}; }
  void setDevice(c10::Device device) const override {
    if (device.has_index()) {
      TORCH_CHECK(device.index() < kCount, "fakeacc has ", int(kCount), " devices, not number ", int(device.index()));
      current = device.index();
    }
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) {
      current = device.index();
    }
  }
  c10::Stream getStream(c10::Device device) const override {
    const c10::Device own(kFake, device.has_index() ? device.index() : current);
    return c10::Stream(c10::Stream::UNSAFE, own, stream_of[own.index()]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(kFake, device.has_index() ? device.index() : current));
  }
  c10::Stream getNewStream(c10::Device device, int) const override {
    const c10::Device own(kFake, device.has_index() ? device.index() : current);
    return c10::Stream(c10::Stream::UNSAFE, own, ++streams);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = getStream(stream.device());
    stream_of[stream.device_index()] = stream.id();
    return before;
  }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { host_waits("synchronize", "stream"); }
  void synchronizeDevice(const c10::DeviceIndex) const override { host_waits("synchronize", "device"); }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = &streams;  // all work is done at once, so an event has nothing to hold
  }
  void block(void*, const c10::Stream&) const override { ++stream_waits; }
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override { host_waits("synchronize", "event"); }
  c10::DeviceIndex deviceCount() const noexcept override { return kCount; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kCount; }
  void setCurrentDevice(c10::DeviceIndex index) const override { Guard().setDevice({kFake, index}); }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override { return Guard().exchangeDevice({kFake, index}).index(); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override { return exchangeDevice(index); }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> held(lock);
    return pinned.count(data) > 0;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    c10::DeviceGuard guard(storage.device());
    auto fresh = device_memory.allocate(bytes);
    std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};
const bool hooked = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

// ---- random numbers: a stream per process, apart from the CPU's -----------------------------------------------------

at::Generator& generator() {
  static at::Generator own = at::detail::createCPUGenerator(0x5EED);
  return own;
}

// ---- operators ------------------------------------------------------------------------------------------------------

std::set<std::string> ran;

void refuse_host_tensor(const at::Tensor& tensor, const c10::OperatorHandle& op) {
  // A scalar tensor of the host may join in, as on any accelerator.
  TORCH_CHECK(!tensor.defined() || tensor.device().type() == kFake || tensor.dim() == 0,
      "Expected all tensors to be on the same device, but ", op.schema().name(), " runs on fakeacc and got one of shape ",
      tensor.sizes(), " on ", tensor.device());
}

bool has_byte_index(const c10::IValue& value) {
  if (value.isList()) {
    for (const c10::IValue& item : value.toListRef()) {
      if (item.isTensor() && item.toTensor().defined() &&
          (item.toTensor().scalar_type() == at::kBool || item.toTensor().scalar_type() == at::kByte)) {
        return true;
      }
    }
  }
  return false;
}

// Operators whose result the host needs before it can go on, on hardware: a value, or the size of what comes.
void tell_of_waiting(const c10::OperatorHandle& op, const torch::jit::Stack& stack, size_t count) {
  static const std::set<std::string> values{"aten::_local_scalar_dense", "aten::equal"};
  static const std::set<std::string> sizes{"aten::nonzero", "aten::_unique", "aten::_unique2", "aten::unique_dim",
      "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::masked_select", "aten::bincount"};
  const std::string& name = op.schema().name();
  const auto argument = [&](size_t i) { return torch::jit::peek(stack, i, count); };
  if (values.count(name) > 0) {
    host_waits("value", name.c_str());
  } else if (sizes.count(name) > 0 || (name == "aten::repeat_interleave" && argument(count - 1).isNone())) {
    host_waits("size", name.c_str());
  } else if (name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index_put", 0) == 0) {
    for (size_t i = 0; i < count; ++i) {
      if (has_byte_index(argument(i))) {
        host_waits("size", name.c_str());
      }
    }
  }
}

void on_the_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const auto count = arguments.size();
  tell_of_waiting(op, *stack, count);
  const Inside guard;
  for (size_t i = 0; i < count; ++i) {
    auto& value = torch::jit::peek(*stack, i, count);
    if (value.isTensor()) {
      refuse_host_tensor(value.toTensor(), op);
    } else if (value.isTensorList()) {
      for (const auto& tensor : value.toTensorVector()) {
        refuse_host_tensor(tensor, op);
      }
    } else if (value.isNone() && arguments[i].type()->str().find("Generator") != std::string::npos) {
      value = c10::IValue(generator());
    }
  }
  {
    std::lock_guard<std::mutex> held(lock);
    ran.insert(op.schema().name());
  }
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_host>()); }

c10::Device placed(std::optional<c10::Device> device) {
  return {kFake, device.has_value() && device->has_index() ? device->index() : current};
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<c10::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(placed(device));
  return at::detail::empty_generic(
      size, &device_memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<c10::Device> device, std::optional<bool>) {
  c10::DeviceGuard guard(placed(device));
  return at::detail::empty_strided_generic(
      size, stride, &device_memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

// The same bytes seen as a tensor of the host: only copying and convolution may look through this window.
at::Tensor seen_from_host(const at::Tensor& tensor) {
  return tensor.device().is_cpu() ? tensor
                                  : at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                                        at::TensorOptions().dtype(tensor.dtype()));
}

bool is_pinned(const at::Tensor& tensor) {
  std::lock_guard<std::mutex> held(lock);
  return pinned.count(tensor.storage().data()) > 0;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  if (to.device().is_cpu() && !(non_blocking && is_pinned(to))) {
    host_waits("copy to the host", "aten::copy_");
  } else if (from.device().is_cpu() && !non_blocking) {
    host_waits("copy to the device", "aten::copy_");
  } else if (from.device().is_cpu() && inside == 0 && stream_of[to.device().index()] != 0) {
    ++side_copies;
  }
  seen_from_host(to).copy_(seen_from_host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) {
    to.resize_(from.sizes());
  }
  return copy_from(from, to, false);
}

at::Tensor convolution(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups) {
  const Inside guard;
  TORCH_CHECK(input.device() == weight.device(), "convolution got tensors of two devices");
  std::optional<at::Tensor> host_bias;
  if (bias.has_value() && bias->defined()) {
    host_bias = bias->cpu();
  }
  return at::convolution(input.cpu(), weight.cpu(), host_bias, stride, padding, dilation, transposed, output_padding, groups)
      .to(input.device());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(const at::Tensor& gradient, const at::Tensor& input,
    const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
    at::IntArrayRef output_padding, int64_t groups, std::array<bool, 3> wanted) {
  const Inside guard;
  const std::vector<int64_t> bias_size{gradient.size(1)};
  auto [a, b, c] = at::convolution_backward(gradient.cpu(), input.cpu(), weight.cpu(), at::IntArrayRef(bias_size), stride,
      padding, dilation, transposed, output_padding, groups, wanted);
  const auto back = [&](const at::Tensor& one) { return one.defined() ? one.to(input.device()) : one; };
  return {back(a), back(b), back(c)};
}

// The schema does not say that the running figures change, so the fallback would leave them as they are.
std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(const at::Tensor& input, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& variance,
    bool training, double momentum, double epsilon) {
  const Inside guard;
  const auto host = [](const std::optional<at::Tensor>& one) {
    return one.has_value() && one->defined() ? std::optional<at::Tensor>(one->cpu()) : std::nullopt;
  };
  const auto host_mean = host(mean), host_variance = host(variance);
  auto [a, b, c] = at::native_batch_norm(
      input.cpu(), host(weight), host(bias), host_mean, host_variance, training, momentum, epsilon);
  if (training && host_mean.has_value()) {
    mean->copy_(*host_mean);
    variance->copy_(*host_variance);
  }
  return {a.to(input.device()), b.to(input.device()), c.to(input.device())};
}

int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double,
    bool, std::optional<double>, bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("native_batch_norm", &batch_norm);
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("unfold", TORCH_FN(at::native::unfold));
  m.impl("resize_", TORCH_FN(at::native::resize_));
  m.impl("set_.source_Storage", [](at::Tensor& self, c10::Storage source) -> at::Tensor& { return at::native::set_(self, source); });
  m.impl("record_stream", [](at::Tensor&, c10::Stream) { ++recorded; });
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(at::native::set_storage_cpu_));
}

// ---- autocast: the lists of operators that PyTorch keeps for every accelerator --------------------------------------

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
#define LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
  AT_FORALL_LOWER_PRECISION_FP(LOWER)
#undef LOWER
#define SINGLE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)
  AT_FORALL_FP32(SINGLE)
#undef SINGLE
#define TYPED(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32_set_opt_dtype)
  AT_FORALL_FP32_SET_OPT_DTYPE(TYPED)
#undef TYPED
#define PROMOTE(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, promote)
  AT_FORALL_PROMOTE(PROMOTE)
#undef PROMOTE
}

// ---- what the Python side asks --------------------------------------------------------------------------------------

TORCH_LIBRARY(fakeacc, m) {
  m.def("device_count() -> int", []() { return int64_t(kCount); });
  m.def("current_device() -> int", []() { return int64_t(current); });
  m.def("set_device(int index) -> ()", [](int64_t index) { Guard().setDevice({kFake, c10::DeviceIndex(index)}); });
  m.def("memory(int index) -> int[]", [](int64_t index) { return std::vector<int64_t>{in_use.at(index), peak.at(index)}; });
  m.def("reset_peak(int index) -> ()", [](int64_t index) { peak.at(index) = in_use.at(index); });
  m.def("seed(int number) -> ()", [](int64_t number) { generator().set_current_seed(uint64_t(number)); });
  m.def("random_state() -> Tensor", []() { return generator().get_state(); });
  m.def("set_random_state(Tensor state) -> ()", [](const at::Tensor& state) { generator().set_state(state); });
  m.def("synchronize() -> ()", []() { host_waits("synchronize", "device"); });
  m.def("watch(int function) -> ()", [](int64_t function) { watcher = reinterpret_cast<Watcher>(function); });
  m.def("uncounted(bool begins) -> ()", [](bool begins) { inside += begins ? 1 : -1; });
  m.def("streams() -> int[]", []() { return std::vector<int64_t>{side_copies, stream_waits, recorded}; });
  m.def("operators() -> str[]", []() { return std::vector<std::string>(ran.begin(), ran.end()); });
}

}  // namespace

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &plain_attention)
}
