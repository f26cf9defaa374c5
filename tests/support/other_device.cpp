// A second device without hardware: its tensors lie in the processor's memory, and like a GPU's they cannot be mixed
// with tensors of the processor. Operators run on the processor, after all tensors were found to be on one device.
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/_local_scalar_dense_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/extension.h>
#include <torch/library.h>

namespace {

constexpr auto OTHER = c10::DeviceType::PrivateUse1;
const c10::Device HERE(OTHER, 0);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    return {data, data, &c10::free_cpu, HERE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
};
Memory memory;
REGISTER_ALLOCATOR(OTHER, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return OTHER; }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream getNewStream(c10::Device, int) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  void init() const override {}
};
Hooks hooks;

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
                 std::optional<c10::Device>, std::optional<bool>, std::optional<c10::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type,
                         std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(type));
}

// the same memory as the processor sees it
at::Tensor seen(const at::Tensor& tensor) {
  if (!tensor.defined() || tensor.device().type() != OTHER) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), [tensor](void*) {},
                       tensor.options().device(c10::kCPU));
}

at::Tensor brought(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  auto there = empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), {}, {}, {});
  seen(there).copy_(tensor);
  return there;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  seen(to).copy_(seen(from));
  return to;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  const auto first = stack->size() - count;
  std::vector<c10::IValue> given(stack->begin() + first, stack->end());
  auto check = [&](const at::Tensor& tensor) {
    if (!tensor.defined()) return;
    TORCH_CHECK(tensor.device().type() == OTHER || (tensor.dim() == 0 && tensor.device().is_cpu()), schema.name(),
                ": expected all tensors to be on the same device, but found one on ", tensor.device());
  };
  auto is_out = [&](size_t at) {
    const auto& argument = schema.arguments()[at];
    return argument.kwarg_only() && argument.alias_info() && argument.alias_info()->isWrite();
  };
  for (size_t at = 0; at < count; at++) {
    auto& value = (*stack)[first + at];
    if (value.isTensor() && is_out(at)) {
      value = at::empty({0}, value.toTensor().options().device(c10::kCPU));
    } else if (value.isTensor()) {
      check(value.toTensor());
      value = seen(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorList()) { check(tensor); list.push_back(seen(tensor)); }
      value = c10::IValue(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const auto& part : value.toOptionalTensorList()) {
        std::optional<at::Tensor> tensor = part;
        // like a GPU's, indices may lie on the processor
        list.push_back(tensor ? std::optional<at::Tensor>(seen(*tensor)) : std::nullopt);
      }
      value = c10::IValue(list);
    } else if (value.isDevice()) {
      value = c10::IValue(c10::Device(c10::kCPU));
    }
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  const auto results = schema.returns().size();
  const auto start = stack->size() - results;
  for (size_t at = 0; at < results; at++) {
    auto& value = (*stack)[start + at];
    const auto* alias = schema.returns()[at].alias_info();
    if (alias && alias->isWrite()) {  // an argument that was written to
      for (size_t place = 0; place < count; place++) {
        const auto* own = schema.arguments()[place].alias_info();
        if (!own || !(*own == *alias)) continue;
        if (is_out(place)) {
          const auto& found = value.toTensor();
          const auto& out = given[place].toTensor();
          if (out.sizes() != found.sizes()) at::native::resize_impl_cpu_(out.unsafeGetTensorImpl(), found.sizes(), std::nullopt);
          seen(out).copy_(found);
        }
        value = given[place];
        break;
      }
    } else if (value.isTensor()) {
      value = brought(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorList()) list.push_back(brought(tensor));
      value = c10::IValue(list);
    }
  }
}

const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size, std::optional<c10::MemoryFormat>) {
  at::native::resize_impl_cpu_(self.unsafeGetTensorImpl(), size, std::nullopt);
  return self;
}

at::Tensor convolve(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed,
                    c10::SymIntArrayRef output_padding, c10::SymInt groups) {
  return brought(at::convolution_symint(seen(input), seen(weight), bias ? seen(*bias) : at::Tensor(), stride, padding,
                                        dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolve_backward(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight, c10::SymIntArrayRef stride,
    c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding,
    c10::SymInt groups, std::array<bool, 3> wanted) {
  auto bias_sizes = std::vector<c10::SymInt>{grad.sym_size(1)};
  auto [a, b, c] = at::convolution_backward_symint(seen(grad), seen(input), seen(weight), bias_sizes, stride, padding,
                                                   dilation, transposed, output_padding, groups, wanted);
  return {brought(a), brought(b), brought(c)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", [](const at::Tensor& from, const at::Tensor& to) { return copy_from(from, to, false); });
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &resize);
  m.impl("convolution_overrideable", &convolve);
  m.impl("convolution_backward_overrideable", &convolve_backward);
  m.impl("_local_scalar_dense", [](const at::Tensor& tensor) { return at::native::_local_scalar_dense_cpu(seen(tensor)); });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("start", [] { at::RegisterPrivateUse1HooksInterface(&hooks); });
}
