// Every CPU registration, and the Python module that loading the library creates.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "kernels/table.h"
#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(guardcore, CPU, m) {
  m.impl("sinkhorn", TORCH_BOX(&guardcore::sinkhorn));
  m.impl("sinkhorn_packed", TORCH_BOX(&guardcore::sinkhorn_packed));
  m.impl("sinkhorn_screen", TORCH_BOX(&guardcore::sinkhorn_screen));
  m.impl("sinkhorn_screen_packed", TORCH_BOX(&guardcore::sinkhorn_screen_packed));
  m.impl("joint_sinkhorn", TORCH_BOX(&guardcore::joint_sinkhorn));
  m.impl("joint_sinkhorn_packed", TORCH_BOX(&guardcore::joint_sinkhorn_packed));
  m.impl("calibrated_attention", TORCH_BOX(&guardcore::calibrated_attention));
  m.impl("calibrated_attention_paged", TORCH_BOX(&guardcore::calibrated_attention_paged));
}

namespace {

PyObject* isa(PyObject*, PyObject*) try {
  return PyUnicode_FromString(guardcore::kernels().name);
} catch (const std::invalid_argument& error) {
  PyErr_SetString(PyExc_ValueError, error.what());
  return nullptr;
}

PyMethodDef methods[] = {{"isa", isa, METH_NOARGS, "Name the instruction set that the kernels run on."}, {}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "The CPU kernels; loading registers them.", -1, methods};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
