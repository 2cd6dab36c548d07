//! demo (to come)
