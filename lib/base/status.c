#include <pagedkv/types.h>

struct status_row {
    pkv_status status;
    const char *name;
    const char *text;
};

static const struct status_row rows[] = {
    {PKV_OK, "PKV_OK", "success"},
    {PKV_EINVAL, "PKV_EINVAL", "invalid argument"},
    {PKV_ENOMEM, "PKV_ENOMEM", "out of memory"},
    {PKV_ENOPAGES, "PKV_ENOPAGES", "not enough pages"},
    {PKV_ESTALE, "PKV_ESTALE", "stale handle"},
    {PKV_EFOREIGN, "PKV_EFOREIGN", "handle of another cache"},
    {PKV_EBUSY, "PKV_EBUSY", "object is in use"},
    {PKV_ESTATE, "PKV_ESTATE", "call out of order"},
    {PKV_ERANGE, "PKV_ERANGE", "size out of range"},
    {PKV_ENOTSUP, "PKV_ENOTSUP", "not supported"},
    {PKV_EDROPPED, "PKV_EDROPPED", "tokens were dropped"},
    {PKV_ECORRUPT, "PKV_ECORRUPT", "corruption found"},
    {PKV_EVERSION, "PKV_EVERSION", "unknown struct size or version"},
    {PKV_EUNSAFE, "PKV_EUNSAFE", "admission would be unsafe"},
    {PKV_EIO, "PKV_EIO", "operating system call failed"},
};

static const struct status_row *find(pkv_status status)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (rows[i].status == status) return &rows[i];
    return NULL;
}

const char *pkv_status_text(pkv_status status)
{
    const struct status_row *row = find(status);
    return row ? row->text : "unknown status";
}

const char *pkv_status_name(pkv_status status)
{
    const struct status_row *row = find(status);
    return row ? row->name : "PKV_?";
}

size_t pkv_dtype_size(pkv_dtype dtype)
{
    switch (dtype) {
    case PKV_DTYPE_F32:
        return 4;
    case PKV_DTYPE_F16:
    case PKV_DTYPE_BF16:
        return 2;
    default:
        return 0;
    }
}

const char *pkv_dtype_name(pkv_dtype dtype)
{
    switch (dtype) {
    case PKV_DTYPE_F32:
        return "f32";
    case PKV_DTYPE_F16:
        return "f16";
    case PKV_DTYPE_BF16:
        return "bf16";
    case PKV_DTYPE_K8:
        return "k8";
    case PKV_DTYPE_K4:
        return "k4";
    case PKV_DTYPE_V8:
        return "v8";
    case PKV_DTYPE_V4:
        return "v4";
    default:
        return "?";
    }
}
