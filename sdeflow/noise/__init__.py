"""Where normals come from: torch's generator, or Philox in C++ and Triton."""
