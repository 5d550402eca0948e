/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GOSSAMER_VERSION_H
#define GOSSAMER_VERSION_H
/* The one place that holds the version; CMake and the Python package read it from here. */
#define GOSSAMER_VERSION "0.1.0"
/* Raised when a function or struct of gossamer.h changes in a way that a compiled program would notice. */
#define GOSSAMER_ABI_VERSION 1
#endif
