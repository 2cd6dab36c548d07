//! board (to come)
