//! Vectors of `f32` for each set of instructions, and the run-time choice between them.

use std::cell::Cell;
use std::sync::OnceLock;

/// A set of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; `f32::mul_add` where the others use fused multiply-add.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 (F, VL, DQ, BW).
    Avx512,
}

impl Isa {
    /// All sets, slowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Whether this processor has these instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }
}

/// The best set of this processor.
fn best() -> Isa {
    static BEST: OnceLock<Isa> = OnceLock::new();
    *BEST.get_or_init(|| Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable))
}

thread_local! {
    static CHOSEN: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The set the current thread uses: the one given to [`set_isa`], else the best of this processor.
#[inline]
pub fn isa() -> Isa {
    CHOSEN.get().unwrap_or_else(best)
}

/// Makes the current thread use `isa`; `None` returns to the best one. For tests and benchmarks: the results have the
/// same bits whichever is chosen. Returns `false`, and changes nothing, if the processor lacks it.
pub fn set_isa(isa: Option<Isa>) -> bool {
    let is_available = isa.is_none_or(Isa::is_available);
    if is_available {
        CHOSEN.set(isa);
    }
    is_available
}

/// A computation written once for all widths. Implementations mark `run` as `#[inline(always)]`, so that it is compiled
/// inside the function that has the instructions switched on.
pub(crate) trait Vectorised {
    /// Result.
    type Out;
    /// The computation.
    fn run<L: Lane>(self) -> Self::Out;
}

/// Runs `op` with the instructions of `isa`. An unavailable set falls back to the portable one.
#[inline]
pub(crate) fn dispatch<O: Vectorised>(isa: Isa, op: O) -> O::Out {
    #[cfg(target_arch = "x86_64")]
    {
        // `isa()` and `set_isa` only ever hand out available sets, but `Isa::Avx512` can be written by hand: `best` is
        // the largest available set and the sets are nested, so one comparison decides.
        let isa = isa.min(best());
        if isa == Isa::Avx512 {
            // SAFETY: the processor has the features, see above.
            return unsafe { x86::run_avx512(op) };
        }
        if isa == Isa::Avx2 {
            // SAFETY: as above.
            return unsafe { x86::run_avx2(op) };
        }
    }
    let _ = isa;
    op.run::<Eight>()
}

/// Asks for the cache line at an address, which need not be one of this program: where it is not, nothing happens.
#[inline(always)]
pub(crate) fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program could see and faults nowhere; every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// A vector of `f32`.
///
/// The implementing types are private to this file and reach a computation only through [`dispatch`], which has checked
/// the processor; this is why the methods that use vector instructions need not be `unsafe`.
pub(crate) trait Lane: Copy {
    /// Elements.
    const WIDTH: usize;
    /// Columns of vectors in the widest register tile of the matrix product.
    const TILE: usize;
    /// A vector of eight elements.
    type Half: Lane;

    /// All elements equal.
    fn splat(value: f32) -> Self;
    /// Reads `WIDTH` elements.
    ///
    /// # Safety
    /// `from` points to `WIDTH` readable elements; no alignment is needed.
    unsafe fn load(from: *const f32) -> Self;
    /// Writes `WIDTH` elements.
    ///
    /// # Safety
    /// `to` points to `WIDTH` writable elements; no alignment is needed.
    unsafe fn store(self, to: *mut f32);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    /// `self * factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// `term - self * factor`, rounded once.
    fn neg_mul_add(self, factor: Self, term: Self) -> Self;
    /// `self < other ? self : other`; so `other` if either is NaN.
    fn min(self, other: Self) -> Self;
    /// `self > other ? self : other`; so `other` if either is NaN.
    fn max(self, other: Self) -> Self;
    /// `self > bound ? yes : no`.
    fn select_greater(self, bound: Self, yes: Self, no: Self) -> Self;
    /// 2 to the power of `self`, which holds integers in -126..=127.
    fn power_of_two(self) -> Self;
    /// For positive normal `self`: (m, e) with `self = m 2^e` and m in [0.7071, 1.4143).
    fn mantissa_exponent(self) -> (Self, Self);

    /// Reads the first `WIDTH` elements of `from`.
    #[inline(always)]
    fn read(from: &[f32]) -> Self {
        let from = &from[..Self::WIDTH];
        // SAFETY: the slice has `WIDTH` elements.
        unsafe { Self::load(from.as_ptr()) }
    }

    /// Writes the first `WIDTH` elements of `to`.
    #[inline(always)]
    fn write(self, to: &mut [f32]) {
        let to = &mut to[..Self::WIDTH];
        // SAFETY: the slice has `WIDTH` elements.
        unsafe { self.store(to.as_mut_ptr()) }
    }
}

/// Bits of the square root of one half: the split between mantissa and exponent of [`Lane::mantissa_exponent`].
const SQRT_HALF_BITS: i32 = 0x3f35_04f3;

/// Eight elements in plain Rust.
#[derive(Clone, Copy)]
struct Eight([f32; 8]);

impl Eight {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lane for Eight {
    const WIDTH: usize = 8;
    const TILE: usize = 2;
    type Half = Self;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: eight readable elements by contract; an array of `f32` has the alignment of `f32`.
        Self(unsafe { from.cast::<[f32; 8]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: eight writable elements by contract.
        unsafe { to.cast::<[f32; 8]>().write(self.0) }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Self(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], term.0[i])))
    }
    #[inline(always)]
    fn neg_mul_add(self, factor: Self, term: Self) -> Self {
        Self(std::array::from_fn(|i| (-self.0[i]).mul_add(factor.0[i], term.0[i])))
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn select_greater(self, bound: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] > bound.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Self(self.0.map(|n| f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23)))
    }
    #[inline(always)]
    fn mantissa_exponent(self) -> (Self, Self) {
        let exponent = self.0.map(|x| (x.to_bits() as i32).wrapping_sub(SQRT_HALF_BITS) >> 23);
        let mantissa = std::array::from_fn(|i| f32::from_bits((self.0[i].to_bits() as i32).wrapping_sub(exponent[i] << 23) as u32));
        (Self(mantissa), Self(exponent.map(|e| e as f32)))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lane, SQRT_HALF_BITS, Vectorised};

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run_avx2<O: Vectorised>(op: O) -> O::Out {
        op.run::<Avx2>()
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
    pub(super) unsafe fn run_avx512<O: Vectorised>(op: O) -> O::Out {
        op.run::<Avx512>()
    }

    /// Eight elements.
    #[derive(Clone, Copy)]
    struct Avx2(__m256);

    /// Sixteen elements.
    #[derive(Clone, Copy)]
    struct Avx512(__m512);

    // SAFETY of all calls below: values of these types exist only inside `run_avx2` and `run_avx512`, whose callers have
    // checked the processor; loads and stores have their own contract.
    impl Lane for Avx2 {
        const WIDTH: usize = 8;
        const TILE: usize = 2;
        type Half = Self;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm256_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm256_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            Self(unsafe { _mm256_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            Self(unsafe { _mm256_sqrt_ps(self.0) })
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, term: Self) -> Self {
            Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, term.0) })
        }
        #[inline(always)]
        fn neg_mul_add(self, factor: Self, term: Self) -> Self {
            Self(unsafe { _mm256_fnmadd_ps(self.0, factor.0, term.0) })
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            Self(unsafe { _mm256_min_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            Self(unsafe { _mm256_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn select_greater(self, bound: Self, yes: Self, no: Self) -> Self {
            Self(unsafe { _mm256_blendv_ps(no.0, yes.0, _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, bound.0)) })
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            unsafe {
                let biased = _mm256_add_epi32(_mm256_cvttps_epi32(self.0), _mm256_set1_epi32(127));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased)))
            }
        }
        #[inline(always)]
        fn mantissa_exponent(self) -> (Self, Self) {
            unsafe {
                let bits = _mm256_castps_si256(self.0);
                let exponent = _mm256_srai_epi32::<23>(_mm256_sub_epi32(bits, _mm256_set1_epi32(SQRT_HALF_BITS)));
                let mantissa = _mm256_sub_epi32(bits, _mm256_slli_epi32::<23>(exponent));
                (Self(_mm256_castsi256_ps(mantissa)), Self(_mm256_cvtepi32_ps(exponent)))
            }
        }
    }

    impl Lane for Avx512 {
        const WIDTH: usize = 16;
        const TILE: usize = 4;
        type Half = Avx2;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn div(self, other: Self) -> Self {
            Self(unsafe { _mm512_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            Self(unsafe { _mm512_sqrt_ps(self.0) })
        }
        #[inline(always)]
        fn mul_add(self, factor: Self, term: Self) -> Self {
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
        }
        #[inline(always)]
        fn neg_mul_add(self, factor: Self, term: Self) -> Self {
            Self(unsafe { _mm512_fnmadd_ps(self.0, factor.0, term.0) })
        }
        #[inline(always)]
        fn min(self, other: Self) -> Self {
            Self(unsafe { _mm512_min_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn max(self, other: Self) -> Self {
            Self(unsafe { _mm512_max_ps(self.0, other.0) })
        }
        #[inline(always)]
        fn select_greater(self, bound: Self, yes: Self, no: Self) -> Self {
            Self(unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, bound.0), no.0, yes.0) })
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            unsafe {
                let biased = _mm512_add_epi32(_mm512_cvttps_epi32(self.0), _mm512_set1_epi32(127));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
            }
        }
        #[inline(always)]
        fn mantissa_exponent(self) -> (Self, Self) {
            unsafe {
                let bits = _mm512_castps_si512(self.0);
                let exponent = _mm512_srai_epi32::<23>(_mm512_sub_epi32(bits, _mm512_set1_epi32(SQRT_HALF_BITS)));
                let mantissa = _mm512_sub_epi32(bits, _mm512_slli_epi32::<23>(exponent));
                (Self(_mm512_castsi512_ps(mantissa)), Self(_mm512_cvtepi32_ps(exponent)))
            }
        }
    }
}
