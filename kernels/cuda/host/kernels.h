// Declares the shim's names for driver.cpp, which includes no kernel.
#pragma once
#include "../common.cuh"
