// Nearly all lines of nearly all traces are flat objects of whole numbers and the array of block
// ids. RapidJSON hands those over number by number; a reader that makes an object of each takes as
// long as replaying the trace. In C++ because RapidJSON is.
#include <cstring>

#include <rapidjson/reader.h>

extern "C" {
#include "trace_format.h"
}

namespace
{

enum Field { TIMESTAMP, INPUT, OUTPUT, HASH_IDS, BLOCK_SIZE, OTHER, N_FIELDS };

// Ends the parse, by returning false, at whatever is not plain.
class PlainLine : public rapidjson::BaseReaderHandler<rapidjson::UTF8<>, PlainLine>
{
  public:
    explicit PlainLine(uint64_t *ids) : ids_(ids) {}

    bool Default() { return false; }
    bool StartObject() { return depth_++ == 0; }
    bool EndObject(rapidjson::SizeType) { return true; }
    bool StartArray()
    {
        if (in_ids_ || field_ != HASH_IDS) return false;
        value_[HASH_IDS] = 0; // of a name that occurs twice the last one counts
        in_ids_ = true;
        return true;
    }
    bool EndArray(rapidjson::SizeType)
    {
        in_ids_ = false;
        return true;
    }
    bool Key(const char *name, rapidjson::SizeType length, bool)
    {
        static const char *const names[] = {"timestamp", "input_length", "output_length",
                                            "hash_ids", "block_size"};
        for (rapidjson::SizeType i = 0; i < length; i++)
            if (name[i] < ' ' || name[i] > '~') return false; // jansson knows what UTF-8 allows
        unsigned field = 0;
        while (field < OTHER && (std::strlen(names[field]) != length ||
                                 std::memcmp(names[field], name, length) != 0))
            field++;
        field_ = field;
        seen_ |= 1u << field;
        return true;
    }
    bool Uint(unsigned number) { return Uint64(number); }
    bool Uint64(uint64_t number)
    {
        if (number > INT64_MAX) return false;
        if (in_ids_)
            ids_[value_[HASH_IDS]++] = number;
        else if (depth_ == 0 || field_ == HASH_IDS)
            return false;
        else
            value_[field_] = number;
        return true;
    }

    // Fills the request if nothing is missing or out of bounds.
    bool finish(trace_request *r) const
    {
        const unsigned needed = 1u << TIMESTAMP | 1u << INPUT | 1u << OUTPUT | 1u << HASH_IDS;
        if ((seen_ & needed) != needed || value_[TIMESTAMP] > TRACE_MAX_TIMESTAMP ||
            value_[INPUT] > TRACE_MAX_TOKENS || value_[OUTPUT] > TRACE_MAX_TOKENS ||
            value_[HASH_IDS] > TRACE_MAX_TOKENS || value_[BLOCK_SIZE] == 0 ||
            value_[BLOCK_SIZE] > TRACE_MAX_BLOCK_TOKENS)
            return false;
        r->arrival = static_cast<double>(value_[TIMESTAMP]) / 1000;
        r->input = static_cast<uint32_t>(value_[INPUT]);
        r->output = static_cast<uint32_t>(value_[OUTPUT]);
        r->block_tokens = static_cast<uint32_t>(value_[BLOCK_SIZE]);
        r->n_blocks = static_cast<uint32_t>(value_[HASH_IDS]);
        return true;
    }

  private:
    uint64_t *ids_;
    uint64_t value_[N_FIELDS] = {0, 0, 0, 0, TRACE_DEFAULT_BLOCK_TOKENS, 0};
    unsigned field_ = OTHER, depth_ = 0, seen_ = 0;
    bool in_ids_ = false;
};

} // namespace

// In place: RapidJSON 1.1 otherwise adds to a null pointer when it makes room for the first name.
// It does not check UTF-8, since where it does it reads beyond the end of a line that ends too
// soon.
extern "C" bool trace_read_plain(char *text, size_t length, trace_request *r, uint64_t *ids)
{
    rapidjson::InsituStringStream stream(text);
    rapidjson::Reader reader;
    PlainLine line(ids);
    return reader.Parse<rapidjson::kParseInsituFlag>(stream, line) && stream.Tell() == length &&
           line.finish(r);
}
