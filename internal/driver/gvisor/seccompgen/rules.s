// Lets rules.go declare a function without a body.
