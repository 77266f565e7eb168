//! Between the public contract and the model: reading checks everything and names the field that is wrong;
//! showing turns ids back into names.
