/* Included inside a row: its functions other than attention, all from body.h. */
.write = write_rows, .read = read_rows, .seal = seal, .unseal = unseal, .digest = digest,
.score = score, .merge = merge, .finish = finish, .merge_states = merge_states, .convert = convert,
.dot = dot, .turn = turn, .exp2 = exp2_array,
